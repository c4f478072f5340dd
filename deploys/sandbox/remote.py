"""Commands on the sandbox's hosts, over SSH like everything else that touches them."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

from inventories import sandbox

ROOT = Path(__file__).resolve().parents[2]
STATE = ROOT / ".sandbox"
CA_FILE = STATE / "ca.crt"
SHOW_EDGE_CA = "cd /etc/relay/tls; if [ -s edge-ca.crt ]; then cat edge-ca.crt; else cat ca.crt; fi"
# The authority that the edge's certificates come from, as `edge_ca` has found it.
EDGE_CA_FILE = STATE / "edge-ca.crt"
DOMAIN = "sandbox.test"
PROVIDER_URL = f"https://provider1.{DOMAIN}:9443"
KEY_FILE = "/etc/provider/api.key"


class RemoteError(Exception):
    """A command on a host failed; the message holds host, command and what it printed."""


def addresses(group: str) -> dict[str, str]:
    """Host name → address, in inventory order, of one of the inventory's groups."""
    return {name: data["address"] for name, data in getattr(sandbox, group)}


def run(host: str, *command: str, stdin: str = "", seconds: float = 60) -> str:
    """Run `command` as root on `host`; return its standard output. Raises RemoteError."""
    ssh = ["ssh", "-F", str(STATE / "ssh" / "config"), host, "sudo", shlex.join(command)]
    try:
        done = subprocess.run(
            ssh, input=stdin, capture_output=True, text=True, timeout=seconds, cwd=ROOT, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RemoteError(f"{host}: {shlex.join(command)}: no answer in {seconds} s") from error
    if done.returncode:
        output = (done.stderr or done.stdout).strip()
        raise RemoteError(f"{host}: {shlex.join(command)}: exit {done.returncode}: {output}")
    return done.stdout


def edge_ca() -> Path:
    """A file with the authority of the edge's certificates, as an edge names it now. Raises RemoteError."""
    problems = []
    for host in addresses("edge"):
        try:
            text = run(host, "sh", "-c", SHOW_EDGE_CA)
        except RemoteError as error:
            problems.append(str(error))
        else:
            EDGE_CA_FILE.write_text(text)
            return EDGE_CA_FILE
    raise RemoteError("no edge answers: " + "; ".join(problems))


def relayctl(*arguments: str, stdin: str = "", seconds: float = 120) -> Any:
    """Run the relay's command in the first app host that answers; return its JSON."""
    problems = []
    for host in addresses("app"):
        try:
            return json.loads(run(host, "relayctl", *arguments, "--json", stdin=stdin, seconds=seconds))
        except RemoteError as error:
            # 255 is ssh's own failure: the host is away, so another one may do.
            if "exit 255" not in str(error) and "no answer" not in str(error):
                raise
            problems.append(str(error))
    raise RemoteError("no app host answers: " + "; ".join(problems))


def provider(path: str, *curl_options: str) -> Any:
    """Ask the fake provider's own interface, on its host; the key never leaves it."""
    options = shlex.join([*curl_options, PROVIDER_URL + path])
    key = f'-H "authorization: Bearer $(cat {KEY_FILE})"'
    fetch = f"curl -sS --fail-with-body --cacert /etc/relay/tls/ca.crt {key} {options}"
    return json.loads(run("provider1", "sh", "-c", fetch))
