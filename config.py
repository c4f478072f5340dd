"""pyinfra loads this file by itself when it runs in the repository."""

from pyinfra.context import config

config.SUDO = True
# Stop at the first failed host instead of going on without it.
config.FAIL_PERCENT = 0
config.REQUIRE_PYINFRA_VERSION = "==3.10.0"
# Uploads wait here before they are moved in place. Unlike /tmp it is closed to others: deploys/roles/base.py.
config.TEMP_DIR = "/var/lib/relay-deploy"
