"""The relay reads partitions of usage and never writes them, whatever the default privileges say."""

from alembic import op

from relay.store.migrations import define, refuse_downgrade

revision = "0009_partition_rights"
down_revision = "0008_retention"


def upgrade() -> None:
    define("usage_ensure_partitions")
    op.execute(
        """
        do $$
        declare
            part text;
        begin
            for part in select inhrelid::regclass::text from pg_inherits where inhparent =
            'usage'::regclass loop
                execute 'revoke all on ' || part || ' from relay_app';
                execute 'grant select on ' || part || ' to relay_app';
            end loop;
        end $$
        """
    )


def downgrade() -> None:
    refuse_downgrade()
