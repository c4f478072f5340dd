#!/bin/sh
# Runs in a container that is thrown away: fetches wheels with the Python that hosts will have.
set -eu
failed=
export DEBIAN_FRONTEND=noninteractive
mkdir -p /tmp/wheels
apt-get update -qq
apt-get install -y -qq -o Dir::Cache::archives=/cache/debs --no-install-recommends python3-venv >/dev/null
python3 -m venv /tmp/venv
for file in /prefetch/wheels/*; do
    [ -e "$file" ] || continue
    if /tmp/venv/bin/pip download -q --dest /tmp/wheels --find-links /cache/wheels --require-hashes --no-deps \
        -r "$file" 2>/tmp/error; then
        cp -u /tmp/wheels/* /cache/wheels/
        echo "PROGRESS wheels of ${file##*/}"
    else
        failed=yes
        echo "WARNING wheels of ${file##*/} are not prefetched: $(tail -1 /tmp/error)"
    fi
done
rm -rf /cache/wheels/*
cp /tmp/wheels/* /cache/wheels/ 2>/dev/null || true
[ -n "$failed" ] || cp /prefetch/wheels.digest /cache/wheels.digest
