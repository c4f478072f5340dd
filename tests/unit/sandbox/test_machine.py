from __future__ import annotations

from pathlib import Path

import pytest

from deploys.sandbox import machine
from deploys.sandbox.settings import SandboxError

DEBIAN = machine.Distribution("debian", "bookworm")
TARGETS = [
    "Debian|http://mirror.test/debian/|bookworm|main",
    "Debian|http://mirror.test/debian/|bookworm|contrib",
    "Debian|http://mirror.test/debian-security/|bookworm-security|main",
    "Debian|http://mirror.test/debian/|trixie|main",
    "Vendor|http://vendor.test/apt/|bookworm|main",
]


def test_only_the_distributions_own_sources_of_its_release_are_taken_over() -> None:
    sources = machine.apt_sources(DEBIAN, TARGETS)
    assert "URIs: http://mirror.test/debian/\nSuites: bookworm\nComponents: contrib main\n" in sources
    assert "Suites: bookworm-security" in sources
    assert "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg" in sources
    assert "vendor" not in sources
    assert "trixie" not in sources


def test_the_same_sources_in_another_order_are_the_same_file() -> None:
    assert machine.apt_sources(DEBIAN, TARGETS) == machine.apt_sources(DEBIAN, reversed(TARGETS))


def test_without_sources_the_remedy_is_named() -> None:
    with pytest.raises(SandboxError, match="apt-get update"):
        machine.apt_sources(DEBIAN, ["Vendor|http://vendor.test/|bookworm|main"])


def test_distribution_is_read_from_os_release() -> None:
    text = 'PRETTY_NAME="Ubuntu 24.04.3 LTS"\nID=ubuntu\nVERSION_ID="24.04"\nVERSION_CODENAME=noble\n'
    assert machine.distribution(text) == machine.Distribution("ubuntu", "noble")


def test_a_release_in_preparation_has_no_number_and_is_new_enough() -> None:
    assert machine.distribution("ID=debian\nVERSION_CODENAME=forky\n").codename == "forky"


def test_a_release_whose_python_is_too_old_is_refused_with_the_oldest_that_is_not() -> None:
    text = 'PRETTY_NAME="Ubuntu 22.04.5 LTS"\nID=ubuntu\nVERSION_ID="22.04"\nVERSION_CODENAME=jammy\n'
    with pytest.raises(SandboxError, match=r"needs Ubuntu 24.04 or newer; this is Ubuntu 22.04.5"):
        machine.distribution(text)


def test_another_distribution_is_refused_by_name() -> None:
    with pytest.raises(SandboxError, match="Fedora"):
        machine.distribution('ID=fedora\nPRETTY_NAME="Fedora Linux 41"\n')


def test_apt_settings_keep_what_reaches_packages_and_drop_the_rest() -> None:
    dump = (
        'Acquire::http::Proxy "http://proxy.test:3128";\n'
        'Acquire::Check-Valid-Until "false";\n'
        'DPkg::Post-Invoke:: "rm -f /var/cache/apt/archives/*.deb";\n'
    )
    kept = machine.apt_settings(dump)
    assert kept == 'Acquire::http::Proxy "http://proxy.test:3128";\nAcquire::Check-Valid-Until "false";\n'


def test_pip_settings_of_the_environment_win_over_files() -> None:
    listing = (
        ":env:.index-url='https://env.test/simple'\n"
        "global.index-url='https://file.test/simple'\n"
        "user.proxy='http://proxy.test:3128'\n"
        "global.cert='/etc/ssl/x'\n"
    )
    assert machine.pip_settings(listing) == {
        "index-url": "https://env.test/simple",
        "proxy": "http://proxy.test:3128",
    }


def test_loopback_nameservers_are_passed_over(tmp_path: Path) -> None:
    stub, real = tmp_path / "stub", tmp_path / "real"
    stub.write_text("nameserver 127.0.0.53\nnameserver ::1\n")
    real.write_text("search test\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\n")
    assert machine.nameservers([stub, real]) == ["192.0.2.53", "fe80::1%eth0"]
    assert machine.nameservers([stub, tmp_path / "absent"]) == []


def test_bounding_set_is_named_by_bit() -> None:
    found = machine.bounding_capabilities("Name:\tx\nCapEff:\t0000000000000000\nCapBnd:\t000001fffeffffff\n")
    assert "SYS_RESOURCE" not in found
    assert {"SYS_ADMIN", "NET_ADMIN", "CHECKPOINT_RESTORE"} <= found
    assert len(found) == 40


def test_mtu_of_the_device_with_the_default_route() -> None:
    assert machine.default_mtu("default via 192.0.2.1 dev wg0 \n", {"wg0": 1380, "eth0": 1500}) == 1380
    assert machine.default_mtu("", {"eth0": 9000}) == 1500


def test_memory_available_is_in_bytes() -> None:
    assert machine.memory_available("MemTotal: 4 kB\nMemAvailable:    2048 kB\n") == 2 * 2**20


def test_descendants_reach_grandchildren() -> None:
    assert machine.descendants(1, {1: [2, 3], 3: [4], 9: [10]}) == [1, 2, 3, 4]


def test_parents_are_read_past_names_with_parentheses(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text("7 (odd) name) S 5 7 7 0")
    assert machine.children_by_process(tmp_path) == {5: [7]}
