"""One module a command: its `COMMAND` says what it is. Nothing else names it but NAMES."""

# In the order of the help.
NAMES = (
    "status",
    "list",
    "backup",
    "verify",
    "retention",
    "switchover",
    "failover",
    "rejoin",
    "reinit",
    "restore",
    "rebuild",
    "drill",
    "export",
    "import_check",
    "bucket",
    "dokploy_restore",
)
