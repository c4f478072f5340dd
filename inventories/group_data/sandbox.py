"""What differs in the sandbox."""

import os
import platform
from pathlib import Path

_state = str(Path(__file__).resolve().parents[2] / os.environ.get("RELAY_SANDBOX_DIR", ".sandbox"))

domain = "sandbox.test"
state_directory = _state
secrets_file = f"{_state}/secrets.age"
secrets_key_file = f"{_state}/secrets.key"
edge_acme_directory = ""
edge_acme_contact = f"operations@{domain}"

ssh_key = f"{_state}/ssh/id_ed25519"
ssh_known_hosts_file = f"{_state}/ssh/known_hosts"
ssh_strict_host_key_checking = "yes"

# Containers share their machine's clock.
set_clock = False
# The hosts are built from this machine's own distribution.
postgres_version = {"bookworm": 15, "trixie": 17, "noble": 16}.get(
    platform.freedesktop_os_release().get("VERSION_CODENAME", ""), 15
)
# The sandbox lives for an hour, not for years.
journal_max_use = "64M"
unattended_upgrades = False

# Built by `make up` where the machine has Go.
log_store_program = f"{_state}/cache/victoria-logs/victoria-logs"
log_store_memory = "64MiB"
log_buffer_mb = 64

# All hosts share this machine's memory ...
postgres_shared_buffers = "128MB"
postgres_effective_cache_size = "512MB"
postgres_work_mem = "8MB"
postgres_maintenance_work_mem = "64MB"
postgres_max_wal_size = "1GB"
postgres_slot_wal_keep_size = "2GB"
# ... and its disk.
postgres_disk_handover_mb = 96
postgres_disk_handover_percent = 0.1
postgres_disk_reserve_mb = 48

# The fake provider's model; and the status page, with nobody to read it.
probe_model = "fake-small"
edge_status_page = True

# Nobody sleeps beside the sandbox.
alerts_required = False

# The fake provider answers at once, but streams of half a minute last longer on a machine that stands still;
# what a killed host left is swept within three minutes.
relay_provider_timeout_seconds = 45
# Eleven hosts share this machine's processors: one of them may stand still for seconds.
relay_provider_connect_seconds = 20
relay_hold_margin_seconds = 15

# Operators and tests come from the network's first address, SSH included.
ban_never = [os.environ.get("RELAY_SANDBOX_SUBNET") or "172.30.77.0/24"]
