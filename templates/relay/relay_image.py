#!/usr/bin/env python3
"""Builds the relay's image on this host, pushes it to the fleet's registry. Installed by roles/relay.py.

    relay-image digest ops1.example:5000/relay:TAG          # prints sha256:… or nothing
    relay-image build ops1.example:5000/relay:TAG --context context.tar --base relay-base:TAG --packages a,b

The base is bootstrapped from this host's own package sources; wheels come from this host's pip settings and
are checked against the hashes of requirements.txt. The build itself reaches no network.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

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


def say(text: str) -> None:
    print(f"relay-image: {text}", file=sys.stderr, flush=True)


def run(*command: str, **options: object) -> str:
    """Runs a program and returns its output; its failure is ours."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, **options)
    if done.returncode:
        sys.exit(f"relay-image: {' '.join(command[:3])} … failed ({done.returncode}); its output is above")
    return done.stdout.strip()


def digest(reference: str) -> str:
    """The digest that the registry has for a tag; empty when it has none."""
    repository, tag = reference.rsplit(":", 1)
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


def build(reference: str, context: Path, base: str, packages: str) -> None:
    """Base, wheels, image, push."""
    if not _has_image(base):
        bootstrap(base, packages)
    with tempfile.TemporaryDirectory(prefix="relay-image-") as directory:
        run("tar", "-C", directory, "-xf", str(context))
        wheels(Path(directory))
        say("docker build")
        run("docker", "build", "--quiet", "--build-arg", f"BASE_IMAGE={base}", "--tag", reference, directory)
    say(f"docker push {reference}")
    run("docker", "push", "--quiet", reference)


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
    options = parser.parse_args()
    if options.command == "digest":
        print(digest(options.reference))
    else:
        build(options.reference, options.context, options.base, options.packages)


if __name__ == "__main__":
    main()
