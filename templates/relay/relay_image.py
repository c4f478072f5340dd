#!/usr/bin/env python3
"""Builds the relay's image on this host, pushes it to the fleet's registry. Installed by roles/relay.py.

    relay-image digest ops1.example:5000/relay:TAG          # prints sha256:… or nothing; @DIGEST is possible
    relay-image build ops1.example:5000/relay:TAG --context context.tar --base relay-base:TAG --packages a,b
    relay-image scan ops1.example:5000/relay@sha256:…       # ends with 1 when it holds keys, .env or .git
    relay-image scan REFERENCE --secrets - < values.json    # and these: {"name": "value"}

What is built is scanned before it is pushed: every file of every layer but the base's, also those that a
later layer deletes, and the image's configuration.

The base is bootstrapped from this host's own package sources; wheels come from this host's pip settings and
are checked against the hashes of requirements.txt. The build itself reaches no network.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

# Docker pushes its own format, from version 29 the Open Container Initiative's.
MANIFESTS = ", ".join(
    (
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
    )
)
SOURCES = ("/etc/apt/sources.list", "/etc/apt/sources.list.d")
VENV = Path("/var/lib/relay-image/venv")

# What each secret begins with, and how it goes on. A key's first line alone stands in many programs.
KEY_BEGINS = rb"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:\\[rn]|\s)+(?:[\w-]+: [^\n]*\s+)*[A-Za-z0-9+/=]{40}"
CONTENTS = [
    ("a private key", b"-----BEGIN ", KEY_BEGINS),
    ("an age key", b"AGE-SECRET-KEY-1", rb"AGE-SECRET-KEY-1[0-9A-Z]{58}"),
    ("a token of the relay", b"sk-relay-", rb"sk-relay-[\w-]{43}"),
    ("a key of OpenAI", b"sk-", rb"sk-(?:(?:proj|svcacct|admin)-[\w-]{40}|[A-Za-z0-9]{20}T3BlbkFJ)"),
    ("a key of Anthropic", b"sk-ant-", rb"sk-ant-[a-z]+[0-9]{2}-[\w-]{80}"),
    ("a key of Google", b"AIza", rb"AIza[\w-]{35}"),
    ("a key of AWS", b"AKIA", rb"AKIA(?![A-Z0-9]{9}EXAMPLE)[A-Z0-9]{16}\b"),
    ("a token of GitHub", b"gh", rb"gh(?:[pousr]_[A-Za-z0-9]{36}|_pat_\w{82})"),
    ("a token of GitHub", b"github_pat_", rb"github_pat_\w{82}"),
    ("a token of Slack", b"xox", rb"xox[abprs]-[0-9A-Za-z-]{20}"),
]
PATTERNS = [(what, begins, re.compile(pattern)) for what, begins, pattern in CONTENTS]
NAMES = [
    ("settings with secrets", re.compile(r"(^|/)\.env(\.[^/]*)?$")),
    ("a repository", re.compile(r"(^|/)\.git/")),
    ("credentials", re.compile(r"(^|/)(\.netrc|\.pgpass|\.pypirc|\.docker/config\.json|\.aws/credentials)$")),
    ("a private key", re.compile(r"(^|/)(id_(rsa|dsa|ecdsa|ed25519)|secrets\.(age|key))$")),
]
# Shorter values stand by chance in any program.
LEAST_SECRET = 12
PART, OVERLAP = 8 << 20, 8 << 10


def say(text: str) -> None:
    print(f"relay-image: {text}", file=sys.stderr, flush=True)


def run(*command: str, **options: object) -> str:
    """Runs a program and returns its output; its failure is ours."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, **options)
    if done.returncode:
        sys.exit(f"relay-image: {' '.join(command[:3])} … failed ({done.returncode}); its output is above")
    return done.stdout.strip()


def digest(reference: str) -> str:
    """The digest that the registry has for NAME:TAG or NAME@DIGEST; empty when it has none."""
    repository, tag = reference.split("@") if "@" in reference else reference.rsplit(":", 1)
    registry, name = repository.split("/", 1)
    logins = json.loads(Path("/root/.docker/config.json").read_text())["auths"]
    headers = {"Accept": MANIFESTS, "Authorization": f"Basic {logins[registry]['auth']}"}
    url = f"https://{registry}/v2/{name}/manifests/{tag}"
    request = urllib.request.Request(url, method="HEAD", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return str(answer.headers["Docker-Content-Digest"])
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return ""
        raise


def build(reference: str, context: Path, base: str, packages: str, secrets: dict[str, str]) -> None:
    """Base, wheels, image, scan, push."""
    if not _has_image(base):
        bootstrap(base, packages)
    with tempfile.TemporaryDirectory(prefix="relay-image-") as directory:
        run("tar", "-C", directory, "-xf", str(context))
        wheels(Path(directory))
        say("docker build")
        run("docker", "build", "--quiet", "--build-arg", f"BASE_IMAGE={base}", "--tag", reference, directory)
    scan(reference, base, secrets)
    say(f"docker push {reference}")
    run("docker", "push", "--quiet", reference)


def scan(reference: str, base: str, secrets: dict[str, str]) -> None:
    """Ends the program when the image holds a secret, with the files that do; a value is never printed."""
    if not _has_image(reference):
        run("docker", "pull", "--quiet", reference)
    say(f"scanning {reference} for secrets")
    with tempfile.TemporaryDirectory(prefix="relay-image-") as directory:
        archive = Path(directory, "image.tar")
        run("docker", "save", "--output", str(archive), reference)
        found = sorted(set(findings(archive, _layers(base) if base else set(), secrets)))
    if found:
        lines = "".join(f"\n  {path}: {what}" for path, what in found[:50])
        sys.exit(
            f"relay-image: {reference} holds {len(found)} things that no image may hold:"
            f"{lines}\nTake them out of the build's context, replace what was exposed, and build again."
        )


def findings(archive: Path, known: set[str], secrets: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Path and kind of each secret in an image as `docker save` writes it; `known` layers are left out."""
    wanted = {name: value.encode() for name, value in secrets.items() if len(value) >= LEAST_SECRET}
    with tarfile.open(archive) as image:
        for member in image:
            content = image.extractfile(member) if member.isfile() else None
            if content is None:
                continue
            if known and _digest(content) in known:
                continue
            try:
                yield from _in_layer(content, wanted)
            except tarfile.ReadError:
                content.seek(0)
                yield from _in_content("the image's configuration", content, wanted)


def _digest(content: IO[bytes]) -> str:
    whole = hashlib.sha256()
    while part := content.read(PART):
        whole.update(part)
    content.seek(0)
    return whole.hexdigest()


def _in_layer(content: IO[bytes], secrets: dict[str, bytes]) -> Iterator[tuple[str, str]]:
    with tarfile.open(fileobj=content) as layer:
        for member in layer:
            path = member.name.removeprefix("./")
            file = layer.extractfile(member) if member.isfile() else None
            if file is not None:
                yield from ((f"/{path}", what) for what, name in NAMES if name.search(path))
                yield from _in_content(f"/{path}", file, secrets)


def _in_content(path: str, content: IO[bytes], secrets: dict[str, bytes]) -> Iterator[tuple[str, str]]:
    rest, patterns = b"", PATTERNS
    while part := content.read(PART):
        # Libraries of TLS hold keys with which they test themselves.
        patterns = [] if part.startswith(b"\x7fELF") and not rest else patterns
        data = rest + part
        yield from ((path, what) for what, begins, pattern in patterns if _there(data, begins, pattern))
        yield from ((path, f"the secret {name}") for name, value in secrets.items() if value in data)
        rest = data[-OVERLAP:]


def _there(data: bytes, begins: bytes, pattern: re.Pattern[bytes]) -> bool:
    """Whether the pattern matches somewhere, and not within a longer word; looks for its beginning first."""
    at = data.find(begins)
    while at >= 0:
        if pattern.match(data, at) and not data[max(0, at - 1) : at].isalnum():
            return True
        at = data.find(begins, at + 1)
    return False


def _layers(reference: str) -> set[str]:
    """Digests of an image's layers."""
    listed = run("docker", "image", "inspect", "--format", "{{json .RootFS.Layers}}", reference)
    return {digest.removeprefix("sha256:") for digest in json.loads(listed)}


def bootstrap(base: str, packages: str) -> None:
    """A new root from this host's package sources, imported as an image."""
    codename = run("sh", "-c", ". /etc/os-release && echo $VERSION_CODENAME")
    sources = [str(path) for source in SOURCES for path in _source_files(Path(source))]
    say(f"bootstrapping {base} from {codename}")
    # What the host has downloaded already is taken from its cache.
    archives = "/var/cache/apt/archives"
    cached = f'mkdir -p "$1{archives}"; cp -l {archives}/*.deb "$1{archives}/" || true'
    with tempfile.TemporaryDirectory(prefix="relay-base-") as directory:
        root = f"{directory}/root.tar"
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}"]
        command += [f"--setup-hook={cached}", "--dpkgopt=path-exclude=/usr/share/doc/*"]
        command += ["--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*"]
        run(*command, *_apt_options(), codename, root, *sources)
        run("docker", "import", root, base)


def wheels(directory: Path) -> None:
    """Fetches the wheels that requirements.txt names into the build context."""
    if not (VENV / "bin" / "pip").exists():
        run("python3", "-m", "venv", str(VENV))
    say("fetching wheels")
    options = ["--quiet", "--only-binary=:all:", "--require-hashes", "--no-deps"]
    options += ["--dest", f"{directory}/wheelhouse"]
    run(f"{VENV}/bin/pip", "download", *options, "--requirement", f"{directory}/requirements.txt")


def _has_image(reference: str) -> bool:
    inspected = subprocess.run(["docker", "image", "inspect", reference], capture_output=True, check=False)
    return inspected.returncode == 0


def _source_files(source: Path) -> list[Path]:
    if source.is_dir():
        return sorted([*source.glob("*.list"), *source.glob("*.sources")])
    return [source] if source.exists() and source.read_text().strip() else []


def _apt_options() -> list[str]:
    """Proxies and certificate authorities that this host's apt was given."""
    wanted = ("Acquire::http::Proxy", "Acquire::https::", "Acquire::Retries")
    lines = run("apt-config", "dump").splitlines()
    return [f"--aptopt={line}" for line in lines if line.startswith(wanted) and '""' not in line]


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="relay-image", description=__doc__, formatter_class=layout)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("digest", help="print the digest of a tag in the registry")
    command.add_argument("reference")
    command = commands.add_parser("build", help="build and push an image")
    command.add_argument("reference")
    command.add_argument("--context", type=Path, required=True, help="tar: Dockerfile, requirements, wheel")
    command.add_argument("--base", required=True, help="name of the base image; made when absent")
    command.add_argument("--packages", required=True, help="what the base holds, separated by commas")
    _add_secrets(command)
    command = commands.add_parser("scan", help="refuse an image that holds secrets; it is pulled when absent")
    command.add_argument("reference")
    command.add_argument("--base", default="", help="an image whose layers are known to be clean")
    _add_secrets(command)
    options = parser.parse_args()
    if options.command == "digest":
        print(digest(options.reference))
    elif options.command == "scan":
        scan(options.reference, options.base, _secrets(options.secrets))
    else:
        secrets = _secrets(options.secrets)
        build(options.reference, options.context, options.base, options.packages, secrets)


def _add_secrets(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--secrets", choices=["-"], help="look for these too: a JSON object on standard input"
    )


def _secrets(source: str | None) -> dict[str, str]:
    return json.load(sys.stdin) if source else {}


if __name__ == "__main__":
    main()
