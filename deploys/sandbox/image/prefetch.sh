#!/bin/sh
# Runs in a container of the base image. Downloads, without installing, what each role will install
# (without recommendations, as roles install).
#   /prefetch/roles/<role>   Debian packages, resolved against this image's state
#   /prefetch/roots/<role>   Debian packages of a new root that the role bootstraps on a host
#   /prefetch/wheels/<name>  requirement files, with hashes
#   /cache/debs /cache/wheels  kept between builds on the machine
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
archives=/var/cache/apt/archives
needed=/tmp/needed
: >"$needed"
mkdir -p /tmp/bare
: >/tmp/bare/status

install() {
    apt-get install -qq --no-install-recommends "$@"
}

# fetch TITLE OPTION… PACKAGE…
fetch() {
    title=$1
    shift
    mkdir -p /tmp/none/partial
    if install --print-uris -o Dir::Cache::archives=/tmp/none/ "$@" >/tmp/uris 2>/tmp/error; then
        cut -d' ' -f2 /tmp/uris >/tmp/names
        install --yes --download-only -o Dir::Cache::archives=/cache/debs "$@" >/dev/null
        sort -u /tmp/names "$needed" -o "$needed"
        echo "PROGRESS $title: $(wc -l </tmp/names) packages"
    else
        echo "WARNING $title is not prefetched: $(grep '^E:' /tmp/error | tr '\n' ' ')"
    fi
}

apt-get update -qq
for list in /prefetch/roles/*; do
    [ -e "$list" ] || continue
    # shellcheck disable=SC2046 # a list of packages
    fetch "${list##*/}" $(cat "$list")
done
for list in /prefetch/roots/*; do
    [ -e "$list" ] || continue
    # shellcheck disable=SC2046
    fetch "${list##*/} (bootstrapped root)" -o Dir::State::status=/tmp/bare/status \
        '?essential' '?priority(required)' apt $(cat "$list")
done
(cd /cache/debs && xargs -r cp -t "$archives" <"$needed")
find /cache/debs -maxdepth 1 -name '*.deb' -printf '%f\n' | grep -Fxv -f "$needed" | (cd /cache/debs && xargs -r rm)
apt-get check -qq
rm -rf /tmp/none /tmp/bare /tmp/uris /tmp/names /tmp/needed /tmp/error
echo "PROGRESS packages prefetched: $(find "$archives" -name '*.deb' | wc -l), $(du -sm "$archives" | cut -f1) MB"

# With hashes asked for, pip takes a local file only from a page that states its hash, and before the same
# file of the index only if it has a build number.
mkdir -p /opt/wheels
cd /opt/wheels
cp /cache/wheels/* . 2>/dev/null || true
for file in *-*-*-*-*.whl; do
    [ "$(printf %s "$file" | tr -cd - | wc -c)" = 4 ] || continue
    tags=${file#*-*-}
    mv "$file" "${file%"$tags"}1-$tags"
done
echo '<!DOCTYPE html>' >index.html
find . -name '*.whl' -printf '%f\n' | sort | xargs -r sha256sum | while read -r hash file; do
    echo "<a href=\"$file#sha256=$hash\">$file</a>"
done >>index.html
