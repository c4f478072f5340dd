"""Tries a real Dokploy with what deploys do: an account, a key, a stack that is made, posted and deployed.

    python -m tests.contract.dokploy_real http://127.0.0.1:3000 --email ops@relay.test < PASSWORD
    python -m tests.contract.dokploy_real URL --email EMAIL --image debian:12 < PASSWORD    # deploys it, too

It leaves a project `relay-try` and a key `deploys-try`; the stack is `docker stack rm`'s to remove.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from deploys.lib.dokploy import Dokploy
from deploys.lib.dokploy_stack import Posted, Stack, adopt, environment
from tests.contract.dokploy_document import differences

NAME = "relay-try"
# More than a key survives whose rate is limited.
CALLS = 12
FILE = """# What the relay's file has: quotes, numbers that are texts, modes, variables, a list of pairs.
version: "3.8"
services:
  relay:
    image: {image}
    command: [sleep, "1000"]
    environment: {{PORT: "8000", EMPTY: "", ORIGIN: "*", CHECK: "a\\r\\nb"}}
    configs:
      - {{source: note, target: /etc/note, mode: 292}}
    deploy:
      replicas: ${{ROLLED_REPLICAS:-2}}
      endpoint_mode: dnsrr
      placement: {{max_replicas_per_node: 1}}
      update_config: {{delay: "${{ROLLED_PAUSE:-6s}}", failure_action: "${{ROLLED_ON_FAILURE:-rollback}}"}}
      labels: {{relay.stack: "0123", relay.pinned: ""}}
configs:
  note: {{external: true, name: relay_note_0123456789ab}}
"""


def attempt(url: str, email: str, password: str, image: str) -> str:
    """Goes through all of it, and returns the stack's name. DokployError or AssertionError where it ends."""
    owner = Dokploy(url, hidden=[password])
    assert owner.healthy(), "it does not answer, or does not reach its database"
    owner.first_account(email, password)
    api = Dokploy(url, owner.new_key("deploys-try"))
    api.check_version()
    print(f"version {'.'.join(map(str, api.version()))}; a key was made")
    found = list(differences(api._query("settings.getOpenApiDocument")))
    assert not found, "its document differs:\n" + "\n".join(found)
    print("its document says of our calls what ours says")
    file = FILE.format(image=image or "debian:12")
    compose = adopt(api, NAME, NAME, NAME, file, "")
    assert adopt(api, NAME, NAME, NAME, file, compose.app_name) == compose
    print(f"the stack {compose.app_name} was made, and adopted the second time")
    for _ in range(CALLS):
        api.projects()
    print(f"the key has outlived {CALLS} calls")
    stack = Stack(api, compose, print)
    posted = Posted(file, environment({"ROLLED_REPLICAS": 1}), "0123" * 16)
    stack.post(posted)
    print("file and environment were posted, and come out for Docker as they went in")
    if image:
        stack.deliver(posted)
        print(f"deployed: `docker service inspect {compose.app_name}_relay` must have one replica")
    return compose.app_name


def main(words: Sequence[str] | None = None) -> int:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("url")
    parser.add_argument("--email", required=True)
    parser.add_argument("--image", default="", help="deploys it; needs a config relay_note_0123456789ab")
    given = parser.parse_args(words)
    attempt(given.url, given.email, sys.stdin.read().strip(), given.image)
    return 0


if __name__ == "__main__":
    sys.exit(main())
