"""Limits of plans, tokens a minute of a channel, and how a model's channels are chosen."""

from relay.store.migrations import apply, refuse_downgrade

revision = "0018_plans_and_routes"
down_revision = "0017_limits"


def upgrade() -> None:
    apply(revision)


def downgrade() -> None:
    refuse_downgrade()
