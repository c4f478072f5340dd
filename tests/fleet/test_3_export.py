"""One account's data leaves the fleet in a signed file, which is proven here and by OpenSSH alone."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from backups.commands.export import NAMESPACE
from deploys.sandbox import remote
from deploys.sandbox.remote import relayctl
from tests.fleet.conftest import backups
from tests.fleet.patroni import query
from tests.fleet.runbook import follow


def test_the_runbooks_page_is_followed(tmp_path: Path) -> None:
    """A customer or a court asks for an account's data."""
    account = query("select account_id from usage group by 1 order by count(*) desc limit 1")
    changed = {"production": "sandbox", "acme.jsonl": str(tmp_path / "a.jsonl"), "acme": account}
    assert "add up" in follow("6.", changed)


def test_an_account_is_exported_and_proven(tmp_path: Path) -> None:
    file = tmp_path / "account.jsonl"
    account = query("select account_id from usage group by 1 order by count(*) desc limit 1")
    words = ("export", "sandbox", "--account", account, "--to", str(file), "--yes", "--reason", "fleet test")
    exported = backups(*words)["result"]
    assert exported["problems"] == []
    assert exported["rows"]["usage"] > 0
    checked = backups("import-check", "sandbox", str(file))
    assert (checked["problems"], str(checked["account"])) == ([], account)
    signers = ["-n", NAMESPACE, "-I", "drill", "-f", f"{file}.signers", "-s", f"{file}.sig"]
    done = subprocess.run(["ssh-keygen", "-Y", "verify", *signers], input=file.read_bytes(), check=False)
    assert done.returncode == 0
    (balance,) = (
        row for row in relayctl("ledger", "balance", "--account", account) if row["unit"] == "credit"
    )
    told = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    (exported_balance,) = (one["balances"] for one in told if one.get("balances", {}).get("unit") == "credit")
    assert exported_balance["balance"] == balance["balance"]
    text = file.read_text(encoding="utf-8")
    for secret in remote.run("ops1", "cat", "/etc/relay/drill.reference").split():
        if secret.startswith("password="):
            assert secret.partition("=")[2] not in text
