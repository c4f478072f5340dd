"""The database's room: connections, migrations and every SQL statement of the ledger."""
