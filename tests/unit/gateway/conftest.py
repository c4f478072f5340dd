"""A call's life in the tests waits for nobody who is not there."""

import pytest

from relay.gateway import failover


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who cannot be reached is asked again at once."""
    monkeypatch.setattr(failover, "CONNECT_PAUSES", (0.001,) * 4)
