"""Where programs that take alerts find what they share (templates/webhook/relay_webhook.py)."""

from __future__ import annotations

from deploys.lib.config_files import LIBRARY, ConfigFile, source


def module() -> ConfigFile:
    """The module, on a host whose program takes alerts."""
    return ConfigFile(f"{LIBRARY}/relay_webhook.py", source("webhook/relay_webhook.py"))
