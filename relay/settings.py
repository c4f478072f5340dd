"""Typed settings, read from the environment once.

Each setting X is read from ``RELAY_X``, or from the file that ``RELAY_X_FILE`` names (a mounted secret).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Literal, TypeVar, get_args
from urllib.parse import urlsplit

PREFIX = "RELAY_"
ANY = "*"  # in settings that name models or origins: all others
Network = IPv4Network | IPv6Network
UnknownFields = Literal["pass", "drop", "refuse"]
OutputLimitField = Literal["max_completion_tokens", "max_tokens"]
TranscriptFormat = Literal["verbose_json", "json", "as_asked"]


Choice = TypeVar("Choice", bound=str)


class SettingError(Exception):
    """A setting is missing or wrong; the message names its variable and the remedy."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings. Durations are in seconds, sizes in bytes."""

    database_url: str  # libpq connection string of role relay_app
    migration_database_url: str  # the same of role relay_owner; only `migrate` needs it
    redis_url: str  # shared limits; empty: each replica enforces its share alone
    redis_timeout_seconds: float  # then a replica enforces its share alone, and asks again a second later
    # SHA-256 in hex of the administrators' token, of several separated by commas; empty: nobody may write
    # prices
    admin_token_hash: str
    seal_key: str  # Fernet keys that seal channels' API keys, newest first, separated by commas
    ca_file: Path | None  # certificate authorities trusted for providers and Redis beside the system's
    listen: Address
    metrics_listen: Address
    trusted_networks: tuple[Network, ...]  # TRUSTED_PROXIES: networks whose X-Forwarded-For is believed
    topup_url: str  # shown to customers who run out of credit
    replicas: int  # how many relays share the limits
    pool_size: int  # database connections for reads
    provider_connect_seconds: float  # to open a connection to a provider
    provider_proxy: str  # URL of an HTTP proxy through which https providers are reached; empty: none
    provider_first_byte_seconds: float  # from the request to the provider's answer's head
    provider_idle_seconds: float  # between two reads of an answer
    provider_timeout_seconds: float  # for a whole call
    max_body_bytes: int  # of a customer's request
    max_form_bytes: int  # of one with files
    bodies_bytes: int  # of all requests that a replica has in memory at once, before large ones are refused
    answers_bytes: int  # of all whole answers of providers likewise, before large ones wait for each other
    max_answer_bytes: int  # of a provider's answer that is not streamed
    max_event_bytes: int  # of one event of a provider's stream
    max_depth: int  # nesting of a request's JSON
    max_output: Mapping[str, int]  # MODEL_MAX_OUTPUT: by model, tokens of an answer when a call says none
    unknown_fields: UnknownFields  # what becomes of a request's fields unknown here; a channel may differ
    cors_origins: frozenset[str]  # whose web pages may call the API, "*": all; empty: none
    ping_seconds: float  # of a stream whose provider is quiet: then the customer gets a sign of life
    image_hold_tokens: int  # input tokens held for each image in a prompt
    # How long a call waits while the database is away, for the account of its key and for its hold each, and
    # how many calls of a replica may wait for either.
    hold_wait_seconds: float
    hold_wait_calls: int
    settle_seconds: float  # how long a capture is retried while the database is away
    hold_margin_seconds: float  # what a hold lives longer than any call and its settlement
    drain_seconds: float  # after SIGTERM: answering, but no longer ready
    grace_seconds: float  # after that: streams may finish
    keep_usage_months: int  # usage records older than that are dropped
    keep_holds_days: int  # settled holds older than that are dropped
    log_level: str

    @property
    def hold_seconds(self) -> float:
        """Life of a hold: longer than a call and its settlement can take; then the sweeper ends it."""
        call = self.hold_wait_seconds + self.provider_timeout_seconds + self.settle_seconds
        return call + self.hold_margin_seconds

    def max_output_of(self, model: str) -> int:
        """Tokens that an answer by ``model`` may have when the call does not say."""
        return self.max_output.get(model, self.max_output[ANY])

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """Settings from ``environment``; raises SettingError."""
        read = _Reader(environment)
        ca_file = read.text("CA_FILE")
        return cls(
            database_url=read.text("DATABASE_URL"),
            migration_database_url=read.text("MIGRATION_DATABASE_URL"),
            redis_url=read.text("REDIS_URL"),
            redis_timeout_seconds=read.number("REDIS_TIMEOUT_SECONDS", 0.25),
            admin_token_hash=read.text("ADMIN_TOKEN_HASH"),
            seal_key=read.text("SEAL_KEY"),
            ca_file=Path(ca_file) if ca_file else None,
            listen=read.address("LISTEN", "0.0.0.0:8000"),
            metrics_listen=read.address("METRICS_LISTEN", "0.0.0.0:8001"),
            trusted_networks=read.networks("TRUSTED_PROXIES"),
            topup_url=read.text("TOPUP_URL"),
            replicas=int(read.number("REPLICAS", 3, least=1)),
            pool_size=int(read.number("POOL_SIZE", 4, least=1)),
            provider_connect_seconds=read.number("PROVIDER_CONNECT_SECONDS", 5),
            provider_proxy=read.text("PROVIDER_PROXY"),
            provider_first_byte_seconds=read.number("PROVIDER_FIRST_BYTE_SECONDS", 120),
            provider_idle_seconds=read.number("PROVIDER_IDLE_SECONDS", 60),
            provider_timeout_seconds=read.number("PROVIDER_TIMEOUT_SECONDS", 600),
            max_body_bytes=int(read.number("MAX_BODY_BYTES", 16 << 20, least=1024)),
            # OpenAI takes sounds of 25 MB.
            max_form_bytes=int(read.number("MAX_FORM_BYTES", 26 << 20, least=1024)),
            bodies_bytes=int(read.number("BODIES_BYTES", 256 << 20, least=1 << 20)),
            answers_bytes=int(read.number("ANSWERS_BYTES", 128 << 20, least=1 << 20)),
            max_answer_bytes=int(read.number("MAX_ANSWER_BYTES", 64 << 20, least=1024)),
            max_event_bytes=int(read.number("MAX_EVENT_BYTES", 16 << 20, least=1024)),
            max_depth=int(read.number("MAX_DEPTH", 64, least=4)),
            max_output=read.counts("MODEL_MAX_OUTPUT", {ANY: 4096}),
            unknown_fields=read.choice("UNKNOWN_FIELDS", get_args(UnknownFields)),
            cors_origins=read.origins("CORS_ORIGINS"),
            ping_seconds=read.number("PING_SECONDS", 12),
            image_hold_tokens=int(read.number("IMAGE_HOLD_TOKENS", 2000, least=0)),
            # Patroni replaces a dead primary in 24 s where fast_failover is off.
            hold_wait_seconds=read.number("HOLD_WAIT_SECONDS", 30),
            hold_wait_calls=int(read.number("HOLD_WAIT_CALLS", 2000, least=1)),
            settle_seconds=read.number("SETTLE_SECONDS", 60),
            hold_margin_seconds=read.number("HOLD_MARGIN_SECONDS", 60),
            drain_seconds=read.number("DRAIN_SECONDS", 5, least=0),
            grace_seconds=read.number("GRACE_SECONDS", 120, least=0),
            keep_usage_months=int(read.number("KEEP_USAGE_MONTHS", 13, least=6)),
            keep_holds_days=int(read.number("KEEP_HOLDS_DAYS", 35, least=35)),
            log_level=read.text("LOG_LEVEL", "INFO").upper(),
        )

    def require(self, name: str) -> str:
        """The value of text setting ``name``, e.g. ``database_url``; raises SettingError when it is empty."""
        value: str = getattr(self, name)
        if not value:
            variable = PREFIX + name.upper()
            raise SettingError(f"{variable} is not set: set it, or {variable}_FILE to the path of a file")
        return value


class _Reader:
    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def text(self, name: str, default: str = "") -> str:
        path = self._environment.get(f"{PREFIX}{name}_FILE")
        if path:
            try:
                return Path(path).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise SettingError(f"{PREFIX}{name}_FILE: cannot read {path}: {error.strerror}") from error
        return self._environment.get(PREFIX + name, default).strip()

    def number(self, name: str, default: float, *, least: float = 0.001) -> float:
        raw = self.text(name, str(default))
        try:
            value = float(raw)
        except ValueError:
            raise SettingError(f"{PREFIX}{name}: '{raw}' is not a number") from None
        if not least <= value < float("inf"):
            raise SettingError(f"{PREFIX}{name}: {raw} is out of range, give at least {least:g}")
        return value

    def networks(self, name: str) -> tuple[Network, ...]:
        parts = [part.strip() for part in self.text(name).split(",") if part.strip()]
        try:
            return tuple(ip_network(part) for part in parts)
        except ValueError as error:
            raise SettingError(f"{PREFIX}{name}: {error}; give networks as 192.0.2.0/24, ...") from None

    def by_name(self, name: str) -> dict[str, str]:
        """``NAME=VALUE,*=VALUE``; a value alone is that of ``*``."""
        found: dict[str, str] = {}
        for item in filter(None, (part.strip() for part in self.text(name).split(","))):
            key, _, value = item.rpartition("=")
            found[key.strip() or ANY] = value.strip()
        return found

    def counts(self, name: str, default: Mapping[str, int]) -> dict[str, int]:
        given = self.by_name(name)
        for value in given.values():
            if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= 10_000_000:
                problem = f"'{value}' is not a number from 1 to 10000000"
                raise SettingError(f"{PREFIX}{name}: {problem}; give e.g. gpt-4o=16384,*=4096")
        return {**default, **{key: int(value) for key, value in given.items()}}

    def choice(self, name: str, allowed: tuple[Choice, ...]) -> Choice:
        """One of ``allowed``, the first by default."""
        given = self.text(name, allowed[0])
        chosen = next((choice for choice in allowed if choice == given), None)
        if chosen is None:
            raise SettingError(f"{PREFIX}{name}: '{given}' is not one of: {', '.join(allowed)}")
        return chosen

    def origins(self, name: str) -> frozenset[str]:
        given = frozenset(
            part.strip().rstrip("/").lower() for part in self.text(name).split(",") if part.strip()
        )
        for origin in given - {ANY}:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or f"{parts.scheme}://{parts.netloc}" != origin:
                raise SettingError(f"{PREFIX}{name}: '{origin}' is not like https://chat.example.com, or *")
        return given

    def address(self, name: str, default: str) -> Address:
        raw = self.text(name, default)
        host, _, port = raw.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65535:
            raise SettingError(f"{PREFIX}{name}: '{raw}' is not HOST:PORT, e.g. {default}")
        return Address(host.strip("[]"), int(port))
