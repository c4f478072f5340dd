"""What a channel's provider is asked for where a transcript is wanted as plain text."""

from relay.store.migrations import apply, refuse_downgrade

revision = "0019_transcript_format"
down_revision = "0018_plans_and_routes"


def upgrade() -> None:
    apply(revision)


def downgrade() -> None:
    refuse_downgrade()
