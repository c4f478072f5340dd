"""The first paid call: register, top up, call through the edge, and compare every book to the nano-dollar.

The charge is worked out here a second time, from the provider's books and the published price alone, so
that an error in the relay's own arithmetic cannot agree with itself.
"""

from __future__ import annotations

import argparse
import ssl
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

import httpx2
import openai

from deploys.sandbox import remote
from deploys.sandbox.remote import DOMAIN, relayctl

MODEL = "fake-small"
CHANNEL = "provider1"
USD_PER_MILLION_INPUT = Decimal("2.50")
USD_PER_MILLION_OUTPUT = Decimal("10")
GRANT_USD = Decimal("5.00")
NANO = 1_000_000_000


class Mismatch(Exception):
    """Two books disagree; the message holds both figures."""


@dataclass(frozen=True)
class Customer:
    """A registered account with a token that was shown once."""

    account: int
    token: str


class EdgeTransport(httpx2.HTTPTransport):
    """Reaches one edge by address while certificate and Host are the domain's: no DNS, no /etc/hosts."""

    def __init__(self, address: str) -> None:
        context = ssl.create_default_context(cafile=str(remote.edge_ca()))
        super().__init__(verify=context)
        self._address = address

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        request.extensions["sni_hostname"] = request.url.host
        request.url = request.url.copy_with(host=self._address)
        return super().handle_request(request)


def client(token: str, edge: str) -> openai.OpenAI:
    """The official SDK, pointed at one edge of the sandbox. It must not retry: each call is counted."""
    http = httpx2.Client(transport=EdgeTransport(edge), timeout=60)
    return openai.OpenAI(api_key=token, base_url=f"https://api.{DOMAIN}/v1", http_client=http, max_retries=0)


def open_channel() -> None:
    """The provider as a channel, with its price; what exists already is left alone."""
    key = remote.run("provider1", "cat", remote.KEY_FILE)
    relayctl(
        *("channel", "create", "--if-missing", "--name", CHANNEL, "--provider", "openai"),
        *("--base-url", f"{remote.PROVIDER_URL}/v1", "--models", MODEL, "--api-key-stdin"),
        stdin=key,
    )
    # One of a group, such as that of the probe's account, is nobody else's price.
    prices = relayctl("price", "list", "--model", MODEL)
    if not any(not price["customer_group"] and not price["valid_to"] for price in prices):
        relayctl(
            *("price", "publish", "--model", MODEL),
            *("--in-text", f"{USD_PER_MILLION_INPUT}/1M", "--out-text", f"{USD_PER_MILLION_OUTPUT}/1M"),
        )


def register(name: str, usd: Decimal = GRANT_USD) -> Customer:
    """A new account with `usd` of credit and one token."""
    account = int(relayctl("account", "create", "--name", name)["id"])
    relayctl(
        *("grant", "--account", str(account), "--amount-usd", str(usd), "--source", "manual"),
        *("--source-id", name, "--reason", "first call"),
    )
    token = relayctl("token", "create", "--account", str(account), "--name", name)["token"]
    return Customer(account, token)


def call(sdk: openai.OpenAI, *, stream: bool) -> tuple[str, str]:
    """One call; return its request id and the text that arrived."""
    messages = [{"role": "user", "content": "Say something worth paying for."}]
    raw = sdk.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=messages,  # type: ignore[arg-type]
        max_tokens=64,
        stream=stream,
    )
    request_id = raw.headers["x-request-id"]
    answer = raw.parse()
    if isinstance(answer, openai.Stream):
        return request_id, "".join(c.choices[0].delta.content or "" for c in answer if c.choices)
    return request_id, answer.choices[0].message.content or ""


def expected_charge(prompt_tokens: int, completion_tokens: int) -> int:
    """Nano-dollars for a call, rounded half up once."""
    usd = (prompt_tokens * USD_PER_MILLION_INPUT + completion_tokens * USD_PER_MILLION_OUTPUT) / 1_000_000
    return int((usd * NANO).quantize(Decimal(1), rounding=ROUND_HALF_UP))


def compare(customer: Customer, request_ids: list[str]) -> int:
    """Provider's books against usage, ledger and balance; return the total charge. Raises Mismatch."""
    who = ("--account", str(customer.account))
    # Each book is a command on a host, most of it waiting: read side by side.
    with ThreadPoolExecutor() as pool:
        serving = pool.map(lambda one: remote.provider(f"/books?request_id={one}")["calls"], request_ids)
        listing = pool.submit(relayctl, "usage", "list", *who)
        ledger = pool.submit(relayctl, "ledger", "list", *who)
        account = pool.submit(relayctl, "account", "show", str(customer.account)).result()
    usage = {str(row["request_id"]): row for row in listing.result()}
    total = 0
    for request_id, (served,) in zip(request_ids, serving, strict=True):
        charge = expected_charge(served["prompt_tokens"], served["completion_tokens"])
        same(f"charge of call {request_id}", provider_books=charge, usage_record=usage[request_id]["charge"])
        total += charge
    left = int(GRANT_USD * NANO) - total
    same("sum of the ledger", expected=left, ledger=sum(entry["amount"] for entry in ledger.result()))
    same("balance", expected=left, account=account["balance_nanodollars"])
    same("held after the calls", expected=0, account=account["held_nanodollars"])
    return total


def same(what: str, **figures: int) -> None:
    """Raise Mismatch unless all figures are equal."""
    if len(set(figures.values())) != 1:
        raise Mismatch(f"{what}: " + ", ".join(f"{name} {value}" for name, value in figures.items()))


def main(words: Sequence[str] | None = None) -> None:
    """Entry point of the last phase of `make up`; exits 0 when the books agree, else 1."""
    parser = argparse.ArgumentParser(prog="python -m deploys.sandbox.firstcall", description=main.__doc__)
    parser.add_argument("--only-channel", action="store_true", help="make the channel, and call nobody")
    if parser.parse_args(words).only_channel:
        try:
            open_channel()
        except remote.RemoteError as error:
            print(f"the channel to the provider was not made: {error}", file=sys.stderr)
            raise SystemExit(1) from error
        return
    edge, address = next(iter(remote.addresses("edge").items()))
    try:
        with ThreadPoolExecutor() as pool:
            channel = pool.submit(open_channel)
            customer = register(f"first-call-{time.strftime('%Y%m%dT%H%M%S')}")
        channel.result()
        with client(customer.token, address) as sdk:
            calls = [call(sdk, stream=False), call(sdk, stream=True)]
        for text in (text for _, text in calls):
            print(f"answer through {edge}: {text!r}")
        total = compare(customer, [request_id for request_id, _ in calls])
    except (Mismatch, remote.RemoteError, openai.OpenAIError) as error:
        print(f"the first call failed: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    print(f"2 calls charged {total} n$ (${Decimal(total) / NANO:f})")
    print("provider's books, usage records, ledger and balance agree to the nano-dollar")
    print_next_steps(customer, address)


def print_next_steps(customer: Customer, edge: str) -> None:
    """Addresses, where the passwords are, and what to try next."""
    print(f"""
The platform is up.
  API           https://api.{DOMAIN}/v1 on {", ".join(remote.addresses("edge").values())}
  certificate   .sandbox/edge-ca.crt (the root of the sandbox's ACME server)
  a token       {customer.token}   (account {customer.account}, disposable)
  passwords     .venv/bin/python -m deploys secrets sandbox --show NAME   (encrypted in .sandbox/secrets.age)
  a shell       ssh -F .sandbox/ssh/config app1      then: sudo relayctl --help
  Prometheus    ssh -F .sandbox/ssh/config -L 9090:127.0.0.1:9090 ops1   then http://127.0.0.1:9090

Try next:
  curl https://api.{DOMAIN}/v1/chat/completions \\
    --cacert .sandbox/edge-ca.crt --resolve api.{DOMAIN}:443:{edge} \\
    -H 'authorization: Bearer {customer.token}' -H 'content-type: application/json' \\
    -d '{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "hello"}}]}}'
  make verify          the launch checklist
  make plan            drift: exits 0 when nothing would change
  make down            remove everything""")


if __name__ == "__main__":
    main()
