"""Rows of the database as the catalog that prices calls."""

from collections.abc import Mapping
from datetime import datetime
from fractions import Fraction
from typing import Any

from psycopg import AsyncConnection

from relay.pricing.catalog import Catalog, FxRate, GroupMultiplier
from relay.pricing.charge import Row
from relay.pricing.tariff import PriceVersion
from relay.store import prices as store

DbRow = Mapping[str, Any]


async def load_catalog(connection: AsyncConnection[Any], since: datetime) -> Catalog:
    """Everything published that holds at ``since`` or later."""
    rows = await store.load_published(connection, since)
    versions = tuple(_version(version) for version in rows.versions)
    groups = tuple(_group(row) for row in rows.groups)
    return Catalog(versions, groups, tuple(_fx(row) for row in rows.fx), rows.revision)


def _version(version: DbRow) -> PriceVersion:
    return PriceVersion(
        id=version["id"],
        model=version["model"],
        side=version["side"],
        provider=version["provider"],
        customer_group=version["customer_group"],
        currency=version["currency"],
        valid_from=version["valid_from"],
        valid_to=version["valid_to"],
        quantum=version["quantum"],
        minimum=version["minimum"],
        free=version["free"],
        rows=tuple(Row(**row) for row in version["rows"]),
    )


def _group(row: DbRow) -> GroupMultiplier:
    value = Fraction(row["multiplier"])
    return GroupMultiplier(
        row["id"], row["customer_group"], row["for_group"], value, row["valid_from"], row["valid_to"]
    )


def _fx(row: DbRow) -> FxRate:
    value = Fraction(row["numerator"], row["denominator"])
    return FxRate(row["id"], row["currency"], value, row["valid_from"], row["valid_to"])
