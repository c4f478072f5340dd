"""Every host is lost at once, but the store's, which stands for another site's, and the provider's."""

from __future__ import annotations

from deploys.sandbox import remote
from tests.fleet.test_3_site_loss import lose_and_rebuild

LOST = ("edge", "app", "db", "ops")


def test_the_whole_site_is_lost() -> None:
    lose_and_rebuild([host for group in LOST for host in remote.addresses(group)])
