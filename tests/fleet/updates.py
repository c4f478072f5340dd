"""Updates to install: a repository on a host itself, with a trial package and newer builds of engines."""

from __future__ import annotations

import time
from collections.abc import Sequence

from deploys.sandbox import remote

TRIAL = "relay-patch-trial"
DIRECTORY = "/var/lib/relay-patch-trial"
SOURCE = "/etc/apt/sources.list.d/relay-patch-trial.list"
SECONDS = 300
# What `dpkg-repack` does, which no host has: the installed files and the scripts, under a newer version.
BUILD = f"""
set -e
export LC_ALL=C
mkdir -p {DIRECTORY} && cd {DIRECTORY}
package=$1 version=$2 tree=$(mktemp -d)
mkdir -m 755 $tree/DEBIAN && chmod 755 $tree
if dpkg-query -W $package >/dev/null 2>&1 && [ $package != {TRIAL} ]; then
  dpkg -L $package | while read -r path; do
    case $path in /bin|/lib|/lib64|/sbin) mkdir -p "$tree$path"; continue;; esac
    if [ -d "$path" ] && [ ! -L "$path" ]; then mkdir -p "$tree$path"
    elif [ -e "$path" ] || [ -L "$path" ]; then cp -a "$path" "$tree$path"
    fi
  done
  for part in preinst postinst prerm postrm triggers conffiles config templates; do
    [ ! -e /var/lib/dpkg/info/$package.$part ] || cp -p /var/lib/dpkg/info/$package.$part $tree/DEBIAN/$part
  done
  dpkg-query -s $package | sed -e '/^Status:/d' -e '/^Conffiles:/,$ {{ /^Conffiles:/d; /^ \\//d }}' \\
    -e "s/^Version: .*/Version: $version/" >$tree/DEBIAN/control
else
  printf '%s\\n' "Package: $package" "Version: $version" 'Architecture: all' \\
    'Maintainer: nobody <nobody@example.org>' 'Description: nothing' >$tree/DEBIAN/control
fi
dpkg-deb -Znone --root-owner-group --build $tree $package-$version.deb >/dev/null
rm -r $tree
"""
# A flat repository that says it is the distribution's archive for security.
OFFER = f"""
set -e
cd {DIRECTORY}
. /etc/os-release
origin=$(echo $ID | sed 's/./\\U&/')
for deb in *.deb; do
  dpkg-deb -f $deb; echo "Filename: ./$deb"; echo "Size: $(stat -c %s $deb)"
  echo "SHA256: $(sha256sum $deb | cut -d' ' -f1)"; echo
done >Packages
sum=$(sha256sum Packages | cut -d' ' -f1)
printf '%s\\n' "Origin: $origin" "Label: $origin-Security" "Suite: $VERSION_CODENAME-security" \\
  "Codename: $VERSION_CODENAME-security" 'Architectures: amd64 arm64 all' "Date: $(date -uR)" \\
  'SHA256:' " $sum $(stat -c %s Packages) Packages" >Release
echo 'deb [trusted=yes] file:{DIRECTORY} ./' >{SOURCE}
chmod -R a+rX {DIRECTORY}
apt-get -qq -o Dir::Etc::sourcelist={SOURCE} -o Dir::Etc::sourceparts=- -o APT::Get::List-Cleanup=0 update
"""
REMOVE = f"""
rm -rf {DIRECTORY} {SOURCE} /var/lib/apt/lists/_var_lib_relay-patch-trial_*
dpkg --purge {TRIAL} >/dev/null 2>&1 || true
"""


def version(host: str, package: str) -> str:
    """The installed one; "" for none."""
    return remote.run(
        host, "sh", "-c", f"dpkg-query -W -f '${{Version}}' {package} 2>/dev/null || true"
    ).strip()


def offer(host: str, packages: Sequence[str]) -> dict[str, str]:
    """Offers a host the trial package and newer builds of installed ones; their versions. The trial package
    is installed in an older one."""
    remote.run(host, "sh", "-c", BUILD, "sh", TRIAL, "1", seconds=SECONDS)
    remote.run(host, "dpkg", "--install", f"{DIRECTORY}/{TRIAL}-1.deb", seconds=SECONDS)
    newer = {TRIAL: "2"}
    for package in packages:
        installed = version(host, package).partition("+patchtrial")[0]
        newer[package] = f"{installed}+patchtrial{time.time():.0f}"
    for package, number in newer.items():
        remote.run(host, "sh", "-c", BUILD, "sh", package, number, seconds=SECONDS)
    remote.run(host, "sh", "-c", OFFER, seconds=SECONDS)
    return newer


def remove(host: str) -> None:
    """What was offered is gone; what was installed of engines stays."""
    remote.run(host, "sh", "-c", REMOVE, seconds=SECONDS)


def boot(host: str) -> str:
    """Another one after each boot."""
    return remote.run(host, "cut", "-d ", "-f22", "/proc/1/stat").strip()
