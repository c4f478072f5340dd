"""Providers' API keys are encrypted at rest with Fernet (AES-128-CBC and HMAC-SHA-256, authenticated)."""

from __future__ import annotations

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from relay.settings import SettingError


class KeyCipher:
    """Encrypts with the newest key and decrypts with any, so that keys can be rotated."""

    def __init__(self, keys: str) -> None:
        """``keys``: Fernet keys, newest first, separated by commas; raises SettingError."""
        self._keys = [key.strip() for key in keys.split(",")]
        try:
            self._fernet = MultiFernet([Fernet(key) for key in self._keys])
            self._newest = Fernet(self._keys[0])
        except ValueError:
            raise SettingError(
                "RELAY_SEAL_KEY is not a Fernet key (32 bytes in URL-safe base64); make one with: "
                "python -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())'"
            ) from None

    def encrypt(self, clear: str) -> str:
        """Encrypt a key."""
        return self._fernet.encrypt(clear.encode()).decode()

    def decrypt(self, sealed: str) -> str:
        """The key in clear; raises SettingError when RELAY_SEAL_KEY is not the one that encrypted it."""
        try:
            return self._fernet.decrypt(sealed.encode()).decode()
        except InvalidToken:
            raise SettingError("RELAY_SEAL_KEY does not decrypt this channel's API key") from None

    def renewed(self, sealed: str) -> str | None:
        """The same key encrypted with the newest one; None where it is already. Raises SettingError as
        `decrypt`."""
        try:
            self._newest.decrypt(sealed.encode())
        except InvalidToken:
            return self.encrypt(self.decrypt(sealed))
        return None

    def opens(self, sealed: str) -> bool:
        """Whether one of the keys decrypts it."""
        try:
            self._fernet.decrypt(sealed.encode())
        except InvalidToken:
            return False
        return True

    def has(self, key: str) -> bool:
        """Whether this is one of the keys."""
        return key in self._keys
