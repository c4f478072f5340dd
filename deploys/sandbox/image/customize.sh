#!/bin/sh
# Runs on the machine with the new root as its argument: makes a cloud-like image of a bare system.
set -eu
root=$1

chroot "$root" update-ca-certificates
chroot "$root" useradd --create-home --shell /bin/bash deploy
chroot "$root" usermod --password '*' deploy
chroot "$root" systemctl mask console-getty.service getty@.service systemd-udevd.service \
    systemd-networkd-wait-online.service proc-sys-fs-binfmt_misc.automount
chroot "$root" systemctl enable ssh.service

rm -f "$root"/etc/ssh/ssh_host_* "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/0000*
# A host makes these at its first boot.
for name in machine-id hosts hostname resolv.conf; do
    rm -f "$root/etc/$name"
    : >"$root/etc/$name"
done
