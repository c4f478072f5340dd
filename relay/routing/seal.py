"""Vendors' API keys are sealed at rest with Fernet (AES-128-CBC and HMAC-SHA-256, authenticated)."""

from __future__ import annotations

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from relay.settings import SettingError


class Seal:
    """Seals with the newest key and opens with any, so that keys can be rotated."""

    def __init__(self, keys: str) -> None:
        """``keys``: Fernet keys, newest first, separated by commas; raises SettingError."""
        try:
            self._box = MultiFernet([Fernet(key.strip()) for key in keys.split(",")])
        except ValueError:
            raise SettingError(
                "RELAY_SEAL_KEY is not a Fernet key (32 bytes in URL-safe base64); make one with: "
                "python -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())'"
            ) from None

    def close(self, clear: str) -> str:
        """Seal a key."""
        return self._box.encrypt(clear.encode()).decode()

    def open(self, sealed: str) -> str:
        """The key in clear; raises SettingError when RELAY_SEAL_KEY is not the one that sealed it."""
        try:
            return self._box.decrypt(sealed.encode()).decode()
        except InvalidToken:
            raise SettingError("RELAY_SEAL_KEY does not open this channel's API key") from None
