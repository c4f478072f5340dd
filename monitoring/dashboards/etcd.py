"""etcd: its leader, its disk, its database."""

from __future__ import annotations

from monitoring.dashboards.panels import Board, Lines, Number, Query, Section

RATE = "[$__rate_interval]"


def p99(metric: str, window: str = "[5m]") -> str:
    """The slowest hundredth by member."""
    return f"histogram_quantile(0.99, sum by (instance, le) (rate({metric}_bucket{window})))"


BOARD = Board(
    uid="relay-etcd",
    title="etcd",
    description="The store on which PostgreSQL's failover stands: its leader, its disk's speed, its size.",
    sections=[
        Section(
            "Members",
            [
                Number(
                    title="Members that answer",
                    description="Two of three are enough; one is not.",
                    unit="short",
                    pages=["EtcdMemberDown"],
                    query=Query('sum(up{job="etcd"})'),
                ),
                Number(
                    title="All know a leader",
                    description="1: every member does.",
                    unit="short",
                    alerts=["EtcdNoLeader"],
                    query=Query("min(etcd_server_has_leader)"),
                ),
                Number(
                    title="Elections, 15 minutes",
                    description="Changes of the leader that a member saw.",
                    unit="short",
                    alerts=["EtcdLeaderChangesOften"],
                    query=Query("max(increase(etcd_server_leader_changes_seen_total[15m]))"),
                ),
                Number(
                    title="Database",
                    description="Share of the quota of the largest; at its quota etcd takes no writes.",
                    unit="percentunit",
                    alerts=["EtcdDatabaseLarge"],
                    query=Query("max(etcd_mvcc_db_total_size_in_bytes / etcd_server_quota_backend_bytes)"),
                ),
                Number(
                    title="Leader",
                    description="Members that think they lead: one.",
                    unit="short",
                    pages=["EtcdNoLeader"],
                    query=Query("sum(etcd_server_is_leader)"),
                ),
                Number(
                    title="Proposals that failed",
                    description="In an hour, by all members.",
                    unit="short",
                    pages=["EtcdNoLeader"],
                    query=Query("sum(increase(etcd_server_proposals_failed_total[1h]))"),
                ),
            ],
        ),
        Section(
            "Speed",
            [
                Lines(
                    title="Write to the log, p99",
                    description="fsync of etcd's own WAL: a slow disk loses the leader.",
                    unit="s",
                    alerts=["EtcdDiskSlow"],
                    queries=[Query(p99("etcd_disk_wal_fsync_duration_seconds"), "{{instance}}")],
                ),
                Lines(
                    title="Commit of the database, p99",
                    description="How long the database's file takes.",
                    unit="s",
                    pages=["EtcdDiskSlow"],
                    queries=[Query(p99("etcd_disk_backend_commit_duration_seconds"), "{{instance}}")],
                ),
                Lines(
                    title="Round trip between members, p99",
                    description="Far above the heartbeat's interval, members elect again.",
                    unit="s",
                    pages=["EtcdLeaderChangesOften"],
                    queries=[Query(p99("etcd_network_peer_round_trip_time_seconds"), "{{instance}}")],
                ),
                Lines(
                    title="Proposals",
                    description="Committed a second, and pending now.",
                    unit="short",
                    queries=[
                        Query(f"rate(etcd_server_proposals_committed_total{RATE})", "{{instance}} committed"),
                        Query("etcd_server_proposals_pending", "{{instance}} pending"),
                    ],
                ),
                Lines(
                    title="Size of the database",
                    description="In the file, and in use of it; compaction frees the rest.",
                    unit="bytes",
                    pages=["EtcdDatabaseLarge"],
                    queries=[
                        Query("etcd_mvcc_db_total_size_in_bytes", "{{instance}} file"),
                        Query("etcd_mvcc_db_total_size_in_use_in_bytes", "{{instance}} in use"),
                    ],
                ),
                Lines(
                    title="Memory",
                    description="Resident memory of each member.",
                    unit="bytes",
                    queries=[Query('process_resident_memory_bytes{job="etcd"}', "{{instance}}")],
                ),
            ],
        ),
    ],
)
