"""A real nginx with the edge's own configuration on this machine, on loopback, in a directory of its own."""

from __future__ import annotations

import getpass
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from deploys.lib import fleet, pki
from deploys.lib.errors import DeployError
from deploys.roles.edge import NGINX_PACKAGES, WAF_PACKAGES, EdgeSettings, render_edge

UNICODE_MAP = "/etc/nginx/unicode.mapping"
START_SECONDS = 30
# Where nginx of the distribution keeps bodies: root's, and shared with the nginx that serves.
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def on_loopback(settings: EdgeSettings, directory: Path) -> EdgeSettings:
    """The same edge with ports of the loopback; its files, sockets and logs are in `directory`."""
    https, http, status = (f"127.0.0.1:{free_port()}" for _ in range(3))
    return replace(
        settings,
        https_listen=https,
        http_listen=http,
        status_listen=status,
        user=getpass.getuser(),
        pid_file=str(directory / "nginx.pid"),
        log_dir=str(directory),
        config_dir=str(directory),
        socket_dir=str(directory),
        waf_log=str(directory / "waf-matches.json"),
        waf_tmp=str(directory),
        fleet_tls=str(directory / "fleet"),
        edge_state=str(_state(directory)),
        status_root=str(directory / "status"),
    )


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on, below those of outgoing connections."""
    while True:
        port = random.randrange(15_000, 32_000)  # noqa: S311
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


def require_programs(settings: EdgeSettings) -> None:
    """Raises DeployError, which names what is not installed here and how to get it."""
    needed = [nginx_program(), f"{settings.modules}/ngx_http_lua_module.so"]
    if settings.waf != "off":
        module = f"{settings.modules}/ngx_http_modsecurity_module.so"
        needed += [module, settings.crs_setup, settings.crs_rules, UNICODE_MAP]
    if missing := [path for path in needed if not Path(path).exists()]:
        raise DeployError(
            f"not on this machine: {', '.join(missing)}. On Debian or Ubuntu: sudo apt-get install "
            f"{' '.join(NGINX_PACKAGES + WAF_PACKAGES)}. Or run this command in a checkout on an edge host, "
            "where they are installed"
        )


def nginx_program() -> str:
    """The path of nginx. Raises DeployError where there is none."""
    found = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if not found:
        raise DeployError(
            "nginx is not on this machine. On Debian or Ubuntu: sudo apt-get install "
            f"{' '.join(NGINX_PACKAGES + WAF_PACKAGES)}. Or run this on an edge host, which has it"
        )
    return found


def write_config(directory: Path, settings: EdgeSettings) -> Path:
    """Writes the configuration and a certificate for its names; returns the file of the CA."""
    for name in ("relay/tls", "relay/waf", *_TEMPORARY):
        (directory / name).mkdir(parents=True, exist_ok=True)
    if settings.waf != "off":
        shutil.copy(UNICODE_MAP, directory)
    for name, text in render_edge(settings).items():
        (directory / name).write_text(text)
    if (done := edge_tool(directory, "write")).returncode:
        raise DeployError(f"the local edge's nodes were not written: {done.stderr.strip()}")
    main = directory / "nginx.conf"
    own = "".join(f"    {name}_temp_path {directory / name};\n" for name in _TEMPORARY)
    main.write_text(main.read_text().replace("http {\n", f"http {{\n{own}", 1))
    return _write_certificate(directory, settings)


def _write_certificate(directory: Path, settings: EdgeSettings) -> Path:
    names = settings.names + settings.console_names + settings.status_page_names + settings.tools_names
    ca_file = directory / "ca.crt"
    ca_cert, ca_key = pki.new_authority("Test CA")
    certificate, key = pki.issue(pki.Subject("edge", tuple(names)), ca_cert, ca_key)
    (directory / "fleet").mkdir(exist_ok=True)
    for name, text in (("ca.crt", ca_cert), ("host.crt", certificate), ("host.key", key)):
        (directory / "fleet" / name).write_text(text)
    (directory / "relay/tls/edge.crt").write_text(certificate)
    (directory / "relay/tls/edge.key").write_text(key)
    # A file that came by ACME holds both.
    for both, _ in settings.certificates:
        if both.endswith(".pem"):
            (directory / "relay/tls" / both).write_text(certificate + key)
    ca_file.write_text(ca_cert)
    return ca_file


def edge_tool(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`relay-edge` on the edge in `directory`, which runs or is yet to."""
    nginx = f"{nginx_program()} -c {directory}/nginx.conf"
    command = [sys.executable, str(fleet.REPOSITORY / "templates/edge/relay_edge.py")]
    command += [f"--configured={directory}/relay/nodes.conf", f"--state={_state(directory)}"]
    command += [f"--figures={_state(directory)}/drained.prom"]
    command += [f"--test={nginx} -t -q", f"--reload={nginx} -s reload", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _state(directory: Path) -> Path:
    return directory / "state"


def start_nginx(directory: Path) -> subprocess.Popen[bytes]:
    """nginx in the foreground: see `start_group`."""
    command = [nginx_program(), "-c", str(directory / "nginx.conf"), "-g", "daemon off;"]
    with (directory / "start.log").open("wb") as log:
        return start_group(command, stderr=log)


def start_group(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """A program in a process group of its own, for `stop_group`. It is sent SIGTERM when the thread that
    started it ends, so that it does not outlive a command or a test that is killed."""
    return subprocess.Popen(["setpriv", "--pdeathsig", "TERM", *command], process_group=0, **options)


def stop_group(process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    """Ends a program that leads its process group, and what it left there: a master that is killed
    leaves its workers. Raises subprocess.TimeoutExpired where it did not end by itself."""
    process.terminate()
    try:
        process.wait(seconds)
    finally:
        kill_group(process)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills all of a program's process group at once."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def running_nginx(directory: Path, listen: str) -> Iterator[subprocess.Popen[bytes]]:
    """nginx with the configuration in `directory`, from when it listens on `listen` (host:port)."""
    process = start_nginx(directory)
    try:
        _wait_until_listening(listen, process, directory)
        yield process
    finally:
        stop_group(process)


def _wait_until_listening(listen: str, process: subprocess.Popen[bytes], directory: Path) -> None:
    host, _, port = listen.rpartition(":")
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            said = (directory / "start.log").read_text(errors="replace").strip()
            raise DeployError(f"nginx does not start with this configuration: {said}")
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0:
                return
        time.sleep(0.05)
    raise DeployError(f"nginx does not listen on {listen} after {START_SECONDS} s")
