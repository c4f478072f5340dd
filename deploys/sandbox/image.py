"""The base image: the machine's own distribution, bootstrapped from the machine's own package sources.

Two images, each tagged with the hash of all that went into it: `base` is a bare system that boots; `host`
adds the packages and wheels that roles will install, downloaded but not installed.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from deploys.sandbox import machine, prefetch
from deploys.sandbox.engine import Engine
from deploys.sandbox.settings import Sandbox
from deploys.sandbox.shell import PROGRESS, phase, run, run_logged, say
from deploys.sandbox.state import remove_tree, write_atomically

HERE = Path(__file__).parent / "image"
BASE = "relay-sandbox-base"
HOST = "relay-sandbox-host"
# What a cloud provider's image has and the distribution's required packages lack.
PACKAGES = (
    "apt",
    "systemd",
    "systemd-sysv",
    "libpam-systemd",
    "dbus",
    "openssh-server",
    "sudo",
    "iproute2",
    "ca-certificates",
)
APT = """APT::Keep-Downloaded-Packages "true";
Binary::apt::APT::Keep-Downloaded-Packages "true";
Acquire::Languages "none";
"""
SSHD = """PermitRootLogin no
PasswordAuthentication no
"""


@dataclass(frozen=True)
class Recipe:
    """All that decides the content of the base image. `files`: path to (content, mode)."""

    codename: str
    packages: tuple[str, ...]
    files: dict[str, tuple[bytes, int]]
    customize: bytes

    def digest(self) -> str:
        digest = hashlib.sha256()
        digest.update(repr((self.codename, self.packages)).encode())
        for path, (content, mode) in sorted(self.files.items()):
            digest.update(repr((path, mode, content)).encode())
        digest.update(self.customize)
        return digest.hexdigest()[:12]


def read_recipe() -> Recipe:
    """The recipe for this machine, as it is now."""
    distro = machine.distribution(Path("/etc/os-release").read_text())
    sources = machine.apt_sources(distro, machine.read_index_targets())
    pip = machine.pip_settings(run([sys.executable, "-m", "pip", "config", "list"], check=False).stdout)
    apt = APT + machine.apt_settings(run(["apt-config", "dump"]).stdout)
    files = recipe_files(sources, apt, pip, machine.local_certificates())
    return Recipe(distro.codename, PACKAGES, files, (HERE / "customize.sh").read_bytes())


def recipe_files(
    sources: str, apt: str, pip: dict[str, str], certificates: dict[str, bytes]
) -> dict[str, tuple[bytes, int]]:
    """Files laid over the bare system."""
    files = {
        "etc/apt/sources.list.d/machine.sources": (sources.encode(), 0o644),
        "etc/apt/apt.conf.d/90sandbox": (apt.encode(), 0o644),
        "etc/dpkg/dpkg.cfg.d/sandbox": (b"force-unsafe-io\n", 0o644),
        "etc/pip.conf": (pip_conf(pip, bool(certificates)).encode(), 0o644),
        "etc/ssh/sshd_config.d/10-cloud.conf": (SSHD.encode(), 0o644),
        "etc/sudoers.d/90-cloud": (b"deploy ALL=(ALL) NOPASSWD:ALL\n", 0o440),
        "usr/local/sbin/sandbox-init": ((HERE / "sandbox-init").read_bytes(), 0o755),
    }
    for name, content in certificates.items():
        files[f"usr/local/share/ca-certificates/{name}"] = (content, 0o644)
    return files


def pip_conf(settings: dict[str, str], own_authorities: bool) -> str:
    """pip prefers what is in /opt/wheels; it trusts the system's store where the machine has authorities."""
    lines = {"find-links": "file:///opt/wheels/index.html", "disable-pip-version-check": "true", **settings}
    if own_authorities:
        lines["cert"] = "/etc/ssl/certs/ca-certificates.crt"
    return "[global]\n" + "".join(f"{key} = {value}\n" for key, value in lines.items())


def ensure(sandbox: Sandbox, engine: Engine) -> str:
    """Reference of the host image, built only when its recipe or the roles' lists have changed."""
    recipe = read_recipe()
    wants = prefetch.collect()
    base = f"{BASE}:{recipe.digest()}"
    host = f"{HOST}:{host_digest(recipe, wants)}"
    if exists(engine, host):
        return host
    if not exists(engine, base):
        with phase(f"base image {base}: bootstrapping {recipe.codename}"):
            bootstrap(sandbox, engine, recipe, base)
    with phase(f"host image {host}: prefetching packages of {len(wants.packages)} roles"):
        _prefetch(sandbox, engine, wants, base, host)
    _remove_older(engine, host, base)
    return host


def host_digest(recipe: Recipe, wants: prefetch.Wants) -> str:
    scripts = [(HERE / name).read_bytes() for name in ("prefetch.sh", "wheels.sh")]
    parts = [recipe.digest().encode(), wants.canonical().encode(), *scripts]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def exists(engine: Engine, reference: str) -> bool:
    return engine.docker("image", "inspect", reference, check=False).returncode == 0


def overlay_tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    """The files as a tar archive, all of them root's."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, (content, mode) in sorted(files.items()):
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


# The bootstrap mounts the machine's /dev, /proc and /sys into the new root. In namespaces of its own those
# mounts, and all its processes, end with it, however it ends: nothing is left to remove through.
APART = ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc"]


def bootstrap_command(recipe: Recipe, work: Path) -> list[str]:
    """The command that makes `work`/root.tar from the files in `work`."""
    return [
        *APART,
        "mmdebstrap",
        "--variant=minbase",
        f"--include={','.join(recipe.packages)}",
        f"--aptopt={work}/apt.conf",
        "--dpkgopt=force-unsafe-io",
        f"--customize-hook=tar-in {work}/overlay.tar /",
        f"--customize-hook={HERE}/customize.sh",
        recipe.codename,
        f"{work}/root.tar",
        f"{work}/machine.sources",
    ]


def bootstrap(sandbox: Sandbox, engine: Engine, recipe: Recipe, reference: str) -> None:
    """Make the tar archive whole, then import it: an interrupted bootstrap leaves no image."""
    clean(sandbox)
    work = Path(tempfile.mkdtemp(prefix="bootstrap-", dir=sandbox.directory))
    (work / "overlay.tar").write_bytes(overlay_tar(recipe.files))
    (work / "machine.sources").write_bytes(recipe.files["etc/apt/sources.list.d/machine.sources"][0])
    (work / "apt.conf").write_bytes(recipe.files["etc/apt/apt.conf.d/90sandbox"][0])
    run_logged(
        bootstrap_command(recipe, work),
        sandbox.directory / "logs" / "bootstrap.log",
        show=lambda line: line.startswith(("I: running", "I: download", "I: extract", "I: install", "E:")),
        env={**os.environ, "TMPDIR": str(work)},
    )
    say("  importing")
    change = ["--change", 'ENTRYPOINT ["/usr/local/sbin/sandbox-init"]']
    engine.docker("import", *change, f"{work}/root.tar", reference)
    remove_tree(work)


def clean(sandbox: Sandbox) -> None:
    """Remove what a run that was killed left on disk."""
    for leftover in (*sandbox.directory.glob("bootstrap-*"), sandbox.directory / "prefetch"):
        remove_tree(leftover)


def _prefetch(sandbox: Sandbox, engine: Engine, wants: prefetch.Wants, base: str, host: str) -> None:
    _write_wants(sandbox, wants)
    if not _wheels_cached(sandbox, wants, base):
        _run_in(sandbox, engine, base, "wheels.sh")
    container = _run_in(sandbox, engine, base, "prefetch.sh", keep=True)
    say("  committing")
    change = ["--change", 'ENTRYPOINT ["/usr/local/sbin/sandbox-init"]']
    engine.docker("commit", *change, container, host)
    engine.docker("rm", "--force", container)
    clean(sandbox)


def _wheels_cached(sandbox: Sandbox, wants: prefetch.Wants, base: str) -> bool:
    """Whether an earlier build fetched these very wheels; wheels.sh keeps the digest when it fetched all."""
    digest = hashlib.sha256(repr((sorted(wants.requirements.items()), base)).encode()).hexdigest()
    write_atomically(sandbox.directory / "prefetch" / "wheels.digest", digest)
    fetched = sandbox.cache / "wheels.digest"
    return not wants.requirements or (fetched.exists() and fetched.read_text() == digest)


def _write_wants(sandbox: Sandbox, wants: prefetch.Wants) -> None:
    clean(sandbox)
    directory = sandbox.directory / "prefetch"
    for kind, lists in (("roles", wants.packages), ("roots", wants.root_packages)):
        for role, names in lists.items():
            write_atomically(directory / kind / role, "\n".join(names) + "\n")
    for name, text in wants.requirements.items():
        write_atomically(directory / "wheels" / name, text)
    for name in ("prefetch.sh", "wheels.sh"):
        write_atomically(directory / name, (HERE / name).read_bytes())
    for name in ("debs", "wheels"):
        (sandbox.cache / name).mkdir(parents=True, exist_ok=True)


def _run_in(sandbox: Sandbox, engine: Engine, image: str, script: str, *, keep: bool = False) -> str:
    """Run a prefetch script in a container of its own; the container's name."""
    container = f"{sandbox.name}-prefetch"
    engine.docker("rm", "--force", container, check=False)
    arguments = ["run", "--name", container, "--label", f"relay.sandbox={sandbox.name}"]
    arguments += ["--network", sandbox.name, "--entrypoint", "/bin/sh"]
    for server in machine.nameservers():
        arguments += ["--dns", server]
    arguments += ["--volume", f"{sandbox.directory}/prefetch:/prefetch:ro"]
    arguments += ["--volume", f"{sandbox.cache}:/cache", image, f"/prefetch/{script}"]
    log = sandbox.directory / "logs" / f"{script}.log"
    engine.docker_logged(arguments, log, show=lambda line: line.startswith((PROGRESS, "WARNING", "E:")))
    if not keep:
        engine.docker("rm", "--force", container)
    return container


def _remove_older(engine: Engine, *current: str) -> None:
    """Images of earlier recipes; one that a host still runs on stays."""
    for reference in _references(engine):
        if reference not in current:
            engine.docker("image", "rm", reference, check=False)


def remove_all(engine: Engine) -> None:
    """Remove the images, as far as no host runs on them."""
    _remove_older(engine)


def _references(engine: Engine) -> list[str]:
    """Host images first: they are made from the base images."""
    listing = ["image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]
    return [line for name in (HOST, BASE) for line in engine.docker(*listing, name).stdout.split()]
