"""Secrets are rotated under load: no call fails, and the old values are dead afterwards."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

from deploys.lib import fleet, rotation, secrets
from deploys.roles import secrets as declared
from deploys.run import environment, rotate
from deploys.sandbox import firstcall, remote
from deploys.sandbox.remote import relayctl
from tests.fleet.conftest import Run, deploys
from tests.fleet.load import Call, Load

NAMES = ("postgres_app_password", "redis_password", "relay_seal_key")
RATE = 20.0
# Each stays below the edge's 10 calls a second.
TOKENS = 5
REASON = ("--reason", "the fleet's test")


def values() -> dict[str, str]:
    with environment.use("sandbox"):
        return fleet.store().read()


def under_load(*words: str) -> tuple[Run, list[Call]]:
    """Runs a command while customers call; returns it and all calls."""
    firstcall.open_channel()
    first = firstcall.register(f"secrets-{time.strftime('%H%M%S')}", Decimal(100))
    create = ("token", "create", "--account", str(first.account), "--name")
    tokens = [first.token, *(relayctl(*create, f"secrets-{n}")["token"] for n in range(1, TOKENS))]
    edges = remote.addresses("edge")
    load = Load(edges, remote.DOMAIN, str(remote.edge_ca()), tokens, firstcall.MODEL, RATE, fresh=True)
    ended = threading.Event()

    def drive() -> Run:
        try:
            time.sleep(5)
            return deploys(*words)
        finally:
            time.sleep(5)
            ended.set()

    with ThreadPoolExecutor(1) as pool:
        driven = pool.submit(drive)
        calls = asyncio.run(load.run(stop=ended))
        return driven.result(), calls


def test_three_secrets_are_rotated_under_load_and_the_old_ones_are_dead() -> None:
    before = values()
    run, calls = under_load("secrets", "rotate", "sandbox", *NAMES, *REASON, "--yes")
    run.ended_well()
    failed = [call for call in calls if not call.ok]
    print(f"rotated {', '.join(NAMES)}: {run.seconds:.0f} s, {len(calls)} calls, {len(failed)} failed")
    assert failed == []
    assert calls
    after = values()
    assert not [name for name in NAMES if after[name] == before[name]]
    # Not by the command itself, and once more: what was valid before is refused, what is valid now is taken.
    with environment.use("sandbox") as inventory:
        hands = rotate.Fleet("sandbox", inventory)
        for name, unit in secrets.units(declared()).items():
            if name not in NAMES:
                continue
            trial = unit.way.trial
            assert trial is not None
            assert hands.tries(trial, {name: rotation.shown(before, name)}) == rotation.REFUSED, name
            assert hands.tries(trial, {name: rotation.shown(after, name)}) == rotation.TAKEN, name
    deploys("plan", "sandbox").ended_well()
    deploys("verify", "sandbox", "--wait", "120").ended_well()


def test_others_are_rotated_and_nothing_is_left_to_do() -> None:
    """One of each other kind: a pair of keys, a password with its hash, a token, one that has no overlap."""
    names = ("s3_reader_access_key", "registry_password", "bans_token", "patroni_rest_password")
    more = ("postgres_replication_password", "postgres_owner_password")
    before = values()
    run, calls = under_load("secrets", "rotate", "sandbox", *names, *more, *REASON, "--yes")
    run.ended_well()
    assert [call for call in calls if not call.ok] == []
    after = values()
    assert not [name for name in (*names, *more, "s3_reader_secret_key") if after[name] == before[name]]
    deploys("plan", "sandbox").ended_well()


def test_a_dry_run_changes_nothing_and_a_mistyped_name_is_refused() -> None:
    before = values()
    shown = deploys("secrets", "rotate", "sandbox", NAMES[0])
    shown.ended_well()
    assert "nothing was changed" in shown.output
    refused = deploys("secrets", "rotate", "sandbox", "redis_pasword", *REASON, "--yes")
    assert (refused.status, "did you mean 'redis_password'" in refused.output) == (1, True)
    kept = deploys("secrets", "rotate", "sandbox", "backup_cipher_passphrase", *REASON, "--yes")
    assert (kept.status, "pgBackRest cannot" in kept.output) == (1, True)
    assert values() == before


def test_who_did_it_stands_in_the_audit_and_no_value_does() -> None:
    deploys("secrets", "list", "sandbox").ended_well()
    with environment.use("sandbox"):
        text = (fleet.state_directory() / "audit.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    rotated = [line for line in lines if line["command"] == "secrets rotate" and line["result"] == "done"]
    assert rotated[0]["secrets"] == list(NAMES)
    assert rotated[0]["reason"] == REASON[1]
    assert rotated[0]["who"]
    assert not [name for name, value in rotation.plain(values()).items() if value in text]
