"""The schema says which versions of the relay it still serves."""

from relay.store.migrations import apply, refuse_downgrade

revision = "0015_oldest_version"
down_revision = "0014_budget_use"


def upgrade() -> None:
    apply(revision)


def downgrade() -> None:
    refuse_downgrade()
