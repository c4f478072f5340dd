"""PostgreSQL and Patroni: who leads, who follows how far behind, load, room, what may stop all writes."""

from __future__ import annotations

from monitoring.dashboards.panels import Board, Lines, Number, Query, Section, Table

RATE = "[$__rate_interval]"

BOARD = Board(
    uid="relay-postgres",
    title="PostgreSQL and Patroni",
    description="Roles and replication, load and waits, disk, and what would stop all writes in time.",
    sections=[
        Section(
            "Cluster",
            [
                Number(
                    title="Primaries",
                    description="One, and only one.",
                    unit="short",
                    alerts=["PostgresNoPrimary"],
                    pages=["PostgresTwoPrimaries"],
                    query=Query("sum(patroni_primary)"),
                ),
                Number(
                    title="Synchronous standbys",
                    description="Replicas that confirm commits; one less than the members.",
                    unit="short",
                    alerts=["PostgresNoSynchronousStandby"],
                    pages=["PostgresQuorumAtRisk"],
                    query=Query("sum(patroni_quorum_standby + patroni_sync_standby)"),
                ),
                Number(
                    title="Timeline",
                    description="Each failover and switchover begins a new one.",
                    unit="short",
                    pages=["PostgresFailedOver"],
                    query=Query("max(patroni_postgres_timeline)"),
                ),
                Number(
                    title="Patroni paused",
                    description="1: nobody fails over by itself.",
                    unit="short",
                    alerts=["PatroniPaused"],
                    query=Query("max(patroni_is_paused)"),
                ),
                Number(
                    title="Restart pending",
                    description="Members whose new settings wait for a restart.",
                    unit="short",
                    pages=["PostgresRestartPending"],
                    query=Query("sum(patroni_pending_restart)"),
                ),
                Number(
                    title="Since Patroni saw etcd",
                    description="Of the member that has not seen it longest.",
                    unit="s",
                    alerts=["PatroniWithoutEtcd"],
                    query=Query("time() - min(patroni_dcs_last_seen)"),
                ),
                Table(
                    title="Members that run",
                    description="1: PostgreSQL runs on that host.",
                    unit="short",
                    alerts=["PostgresMemberDown"],
                    query=Query("patroni_postgres_running"),
                ),
                Lines(
                    title="Role by member",
                    description="1 the primary, 0 a replica.",
                    unit="short",
                    pages=["PostgresNoPrimary", "PostgresTwoPrimaries"],
                    queries=[Query("patroni_primary", "{{instance}}")],
                ),
                Lines(
                    title="Replication lag",
                    description="Bytes of WAL that a replica has not replayed yet.",
                    unit="bytes",
                    alerts=["PostgresReplicationLagHigh"],
                    pages=["PostgresReplicaNotStreaming"],
                    queries=[
                        Query(
                            "(scalar(max(patroni_xlog_location)) - patroni_xlog_replayed_location)"
                            " and patroni_replica == 1",
                            "{{instance}}",
                        )
                    ],
                ),
            ],
        ),
        Section(
            "Failover's watcher",
            [
                Lines(
                    title="Silence of the primary",
                    description="How long it has not answered on any path, as each watcher sees it.",
                    unit="s",
                    pages=["FailoverUnwatched"],
                    queries=[Query("failover_watch_silence_seconds", "{{instance}}")],
                ),
                Lines(
                    title="Ready to act",
                    description="1: a dead primary would be acted on.",
                    unit="short",
                    alerts=["FailoverWatchNotReady"],
                    queries=[
                        Query("failover_watch_ready", "{{instance}}"),
                        Query("failover_watch_incomplete", "{{instance}} votes are missing"),
                    ],
                ),
                Lines(
                    title="Fences and releases",
                    description="In an hour: fences put up, leader keys deleted, fences lost. Now: fenced.",
                    unit="short",
                    pages=["FailoverWatchActed", "FailoverFenceStays", "FailoverFenceRemoved"],
                    queries=[
                        Query("increase(failover_watch_fences_total[1h])", "{{instance}} fences"),
                        Query("increase(failover_watch_releases_total[1h])", "{{instance}} releases"),
                        Query("increase(failover_watch_fence_lost_total[1h])", "{{instance}} lost"),
                        Query("failover_watch_fenced", "{{instance}} fenced"),
                    ],
                ),
            ],
        ),
        Section(
            "Load",
            [
                Lines(
                    title="Connections",
                    description="Share of the connections that a member takes.",
                    unit="percentunit",
                    alerts=["PostgresConnectionsHigh"],
                    pages=["PostgresUnmeasured"],
                    queries=[
                        Query(
                            "sum by (instance) (pg_stat_activity_count)"
                            " / max by (instance) (pg_settings_max_connections)",
                            "{{instance}}",
                        )
                    ],
                ),
                Lines(
                    title="Transactions",
                    description="Commits and rollbacks of the relay's database, a second.",
                    unit="ops",
                    queries=[
                        Query(
                            f'rate(pg_stat_database_xact_commit{{datname="relay"}}{RATE})',
                            "{{instance}} commits",
                        ),
                        Query(
                            f'rate(pg_stat_database_xact_rollback{{datname="relay"}}{RATE})',
                            "{{instance}} rollbacks",
                        ),
                    ],
                ),
                Lines(
                    title="Longest transaction",
                    description="Of the relay's database.",
                    unit="s",
                    alerts=["PostgresTransactionLong"],
                    queries=[
                        Query(
                            'max by (instance) (pg_stat_activity_max_tx_duration{datname="relay"})',
                            "{{instance}}",
                        )
                    ],
                ),
                Lines(
                    title="Commits that wait for a replica",
                    description="How long the oldest has run.",
                    unit="s",
                    alerts=["PostgresCommitsWait"],
                    queries=[Query("pg_commit_wait_seconds", "{{instance}}")],
                ),
                Lines(
                    title="Read from memory",
                    description="Share of the blocks of the relay's database that were in the buffers.",
                    unit="percentunit",
                    queries=[
                        Query(
                            'rate(pg_stat_database_blks_hit{datname="relay"}[5m])'
                            ' / (rate(pg_stat_database_blks_hit{datname="relay"}[5m])'
                            ' + rate(pg_stat_database_blks_read{datname="relay"}[5m]) > 0)',
                            "{{instance}}",
                        )
                    ],
                ),
                Lines(
                    title="Deadlocks",
                    description="In five minutes; the relay's own order of locks allows none.",
                    unit="short",
                    queries=[
                        Query('increase(pg_stat_database_deadlocks{datname="relay"}[5m])', "{{instance}}")
                    ],
                ),
            ],
        ),
        Section(
            "Room and age",
            [
                Lines(
                    title="Room for data",
                    description="Free bytes, and the level at which the primary hands over.",
                    unit="bytes",
                    pages=[
                        "PostgresDiskLow",
                        "PostgresDiskFillsNow",
                        "PostgresDiskFillsSoon",
                        "PostgresDiskFillsInDays",
                        "PostgresDiskHandedOver",
                        "PostgresDiskHandoverBlocked",
                        "PostgresDiskUnwatched",
                    ],
                    queries=[
                        Query("postgres_disk_free_bytes", "{{instance}} free"),
                        Query("postgres_disk_size_bytes", "{{instance}} size"),
                        Query("postgres_disk_handover_bytes", "{{instance}} handover"),
                        Query("postgres_disk_reserve_bytes", "{{instance}} reserve"),
                    ],
                ),
                Lines(
                    title="WAL kept by slots",
                    description="What each replication slot keeps on the primary.",
                    unit="bytes",
                    alerts=["PostgresSlotRetainsWal"],
                    pages=["WalPilesUp"],
                    queries=[Query("pg_slot_retained_bytes", "{{instance}} {{slot_name}}")],
                ),
                Lines(
                    title="Size of databases",
                    description="As the primary and replicas see it.",
                    unit="bytes",
                    queries=[Query('max by (datname) (pg_database_size_bytes{datname!~"template.*"})')],
                ),
                Lines(
                    title="Age of transaction ids",
                    description="2^31 stops all writes; freezing keeps it low.",
                    unit="short",
                    alerts=["PostgresTransactionIdsHigh"],
                    queries=[
                        Query("max by (datname) (pg_database_transaction_age_transactions)", "{{datname}}")
                    ],
                ),
                Lines(
                    title="Age of shared row locks",
                    description="Multixacts; 2^31 stops all writes.",
                    unit="short",
                    alerts=["PostgresMultixactsHigh"],
                    queries=[
                        Query("max by (datname) (pg_database_transaction_age_multixacts)", "{{datname}}")
                    ],
                ),
                Number(
                    title="Damaged pages",
                    description="Pages whose checksum was wrong.",
                    unit="short",
                    alerts=["PostgresChecksumFailures"],
                    query=Query("sum(pg_checksum_failures)"),
                ),
            ],
        ),
    ],
)
