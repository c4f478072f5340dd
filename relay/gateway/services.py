"""What the endpoints work with, assembled once by relay.app."""

from __future__ import annotations

from dataclasses import dataclass

from relay.gateway.answer_memory import AnswerMemory
from relay.identity.token_cache import TokenCache
from relay.ledger.ledger import Ledger
from relay.limits.shared import Limits
from relay.price_book.cache import PriceBook
from relay.providers.transport import Transport
from relay.routing.channels import ChannelTable
from relay.settings import Settings
from relay.telemetry.metrics import Metrics


@dataclass(slots=True)
class Services:
    """One of each a process."""

    settings: Settings
    tokens: TokenCache
    channels: ChannelTable
    limits: Limits
    prices: PriceBook
    ledger: Ledger
    transport: Transport
    metrics: Metrics
    answers: AnswerMemory
