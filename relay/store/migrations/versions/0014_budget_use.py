"""What monitoring asks about budgets."""

from relay.store.migrations import apply, refuse_downgrade

revision = "0014_budget_use"
down_revision = "0013_confirmed_answers"


def upgrade() -> None:
    apply(revision)


def downgrade() -> None:
    refuse_downgrade()
