"""A channel has several API keys, limits of its own, and budgets.

ledger_settle, which counts the budgets, needs the tables of 0017 too, and is defined there.
"""

from relay.store.migrations import apply, refuse_downgrade

revision = "0016_channel_keys"
down_revision = "0015_oldest_version"


def upgrade() -> None:
    apply(revision)


def downgrade() -> None:
    refuse_downgrade()
