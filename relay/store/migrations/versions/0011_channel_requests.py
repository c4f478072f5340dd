"""A channel says which unknown fields it takes, and what its provider calls the limit of an answer."""

from relay.store.migrations import apply, refuse_downgrade

revision = "0011_channel_requests"
down_revision = "0010_channel_format"


def upgrade() -> None:
    apply(revision)


def downgrade() -> None:
    refuse_downgrade()
