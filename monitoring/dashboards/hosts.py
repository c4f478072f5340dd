"""Swarm and hosts by the USE method: utilisation, saturation and errors of each resource."""

from __future__ import annotations

from monitoring.dashboards.panels import Board, Lines, Number, Query, Section, Table

RATE = "[$__rate_interval]"
FILES = '{fstype!~"tmpfs|ramfs|squashfs|overlay"}'
LINKS = '{device!~"lo|veth.*|docker.*|br-.*"}'


def host(expr: str, legend: str = "{{instance}}") -> Query:
    """A query with a curve for each host."""
    return Query(expr, legend)


BOARD = Board(
    uid="relay-hosts",
    title="Swarm and hosts",
    description="Utilisation, saturation and errors of CPU, memory, disks and network; the swarm.",
    sections=[
        Section(
            "Fleet",
            [
                Number(
                    title="Hosts that do not answer",
                    description="Of all that are scraped.",
                    unit="short",
                    pages=["HostDown"],
                    query=Query('count(up{job="node"} == 0) or vector(0)'),
                ),
                Number(
                    title="Targets that do not answer",
                    description="Of everything that is scraped.",
                    unit="short",
                    pages=["TargetDown", "DockerDown", "ObjectStoreDown"],
                    query=Query("count(up == 0) or vector(0)"),
                ),
                Number(
                    title="Failed units",
                    description="Units of systemd on all hosts.",
                    unit="short",
                    pages=["HostUnitFailed"],
                    query=Query('sum(node_systemd_unit_state{state="failed"})'),
                ),
                Number(
                    title="Swarm's leader",
                    description="One manager leads.",
                    unit="short",
                    alerts=["SwarmNoLeader"],
                    query=Query("sum(swarm_manager_leader) or vector(0)"),
                ),
                Number(
                    title="Swarm's managers",
                    description="Three keep the swarm when one dies.",
                    unit="short",
                    alerts=["SwarmManagersFew"],
                    query=Query("sum(swarm_node_manager)"),
                ),
                Number(
                    title="Ready nodes",
                    description="In the eyes of the swarm's leader.",
                    unit="short",
                    pages=["SwarmNodeDown"],
                    query=Query('max(swarm_manager_nodes{state="ready"})'),
                ),
            ],
        ),
        Section(
            "Deploys and healing",
            [
                Lines(
                    title="What the healer did",
                    description="Acts an hour by how they ended; dry: what it would have done.",
                    unit="short",
                    pages=["HealerCouldNotMend"],
                    queries=[
                        Query("sum by (end) (increase(relay_healer_acts_total[1h]))", "{{end}}"),
                    ],
                ),
                Lines(
                    title="What the healer left alone",
                    description="Alerts an hour that it did not act upon, by why.",
                    unit="short",
                    pages=["HealerHeldBack"],
                    queries=[
                        Query("sum by (why) (increase(relay_healer_refused_total[1h]))", "{{why}}"),
                        Query("sum(relay_healer_waiting)", "wait for their turn"),
                    ],
                ),
                Number(
                    title="The healer",
                    description="Whether it acts, or only says what it would do.",
                    unit="short",
                    pages=["HealerSilent"],
                    words={"0": "says", "1": "acts"},
                    query=Query("max(relay_healer_acting)"),
                ),
                Number(
                    title="The healer is stopped",
                    description="By the file /etc/relay/healer.stop.",
                    unit="short",
                    pages=["HealerStopped"],
                    words={"0": "no", "1": "yes"},
                    query=Query("max(relay_healer_stopped)"),
                ),
                Table(
                    title="Last deploys",
                    description="Runs of `apply` that changed something; alerts name them.",
                    unit="dateTimeFromNow",
                    query=Query("sort_desc(relay_deploy_timestamp_seconds * 1000)"),
                ),
            ],
        ),
        Section(
            "CPU",
            [
                Lines(
                    title="Utilisation",
                    description="Share of the time in which CPUs were not idle.",
                    unit="percentunit",
                    top=1,
                    queries=[
                        host(f'1 - avg by (instance) (rate(node_cpu_seconds_total{{mode="idle"}}{RATE}))')
                    ],
                ),
                Lines(
                    title="Saturation",
                    description="Load of one minute for each CPU; above 1 work waits.",
                    unit="short",
                    queries=[
                        host(
                            "node_load1 / on (instance)"
                            ' count by (instance) (node_cpu_seconds_total{mode="idle"})'
                        )
                    ],
                ),
                Lines(
                    title="Clock",
                    description="Seconds by which a host's clock differs from the monitoring host's.",
                    unit="s",
                    alerts=["HostClockDrifts"],
                    pages=["HostClockUnsynchronised"],
                    queries=[host("abs(node_time_seconds - timestamp(node_time_seconds))")],
                ),
            ],
        ),
        Section(
            "Memory",
            [
                Lines(
                    title="Available",
                    description="Share of the memory that programs may still take.",
                    unit="percentunit",
                    alerts=["HostMemoryLow"],
                    top=1,
                    queries=[host("node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes")],
                ),
                Lines(
                    title="Saturation",
                    description="Pages a second that are read from disk because they were not in memory.",
                    unit="ops",
                    pages=["HostMemoryLow"],
                    queries=[host(f"rate(node_vmstat_pgmajfault{RATE})")],
                ),
                Lines(
                    title="Killed for want of memory",
                    description="Processes in an hour.",
                    unit="short",
                    pages=["HostMemoryLow"],
                    queries=[host("increase(node_vmstat_oom_kill[1h])")],
                ),
            ],
        ),
        Section(
            "Disks",
            [
                Lines(
                    title="Free space",
                    description="Share of each file system.",
                    unit="percentunit",
                    alerts=["HostDiskFull", "HostDiskSpaceLow"],
                    pages=["HostDiskFillsSoon"],
                    queries=[
                        host(
                            f"min by (instance) (node_filesystem_avail_bytes{FILES}"
                            f" / node_filesystem_size_bytes{FILES})"
                        )
                    ],
                ),
                Lines(
                    title="Free inodes",
                    description="Share of each file system; one without a fixed number has none.",
                    unit="percentunit",
                    alerts=["HostInodesLow"],
                    queries=[
                        host(
                            f"min by (instance) (node_filesystem_files_free{FILES}"
                            f" / (node_filesystem_files{FILES} > 0))"
                        )
                    ],
                ),
                Lines(
                    title="Utilisation",
                    description="Share of the time in which the busiest disk worked.",
                    unit="percentunit",
                    queries=[host(f"max by (instance) (rate(node_disk_io_time_seconds_total{RATE}))")],
                ),
                Lines(
                    title="Saturation",
                    description="Requests that wait, on average, at the busiest disk.",
                    unit="short",
                    queries=[
                        host(f"max by (instance) (rate(node_disk_io_time_weighted_seconds_total{RATE}))")
                    ],
                ),
                Lines(
                    title="Object store's volumes",
                    description="Share of the volumes that the store may open.",
                    unit="percentunit",
                    alerts=["ObjectStoreVolumesFull"],
                    pages=["ObjectStoreErrors", "ObjectStoreDiskError"],
                    queries=[
                        host(
                            "sum by (instance) (SeaweedFS_volumeServer_volumes)"
                            " / sum by (instance) (SeaweedFS_volumeServer_max_volumes)"
                        )
                    ],
                ),
            ],
        ),
        Section(
            "Network",
            [
                Lines(
                    title="Bytes",
                    description="In and out, all interfaces that leave the host.",
                    unit="Bps",
                    queries=[
                        host(
                            f"sum by (instance) (rate(node_network_receive_bytes_total{LINKS}{RATE})"
                            f" + rate(node_network_transmit_bytes_total{LINKS}{RATE}))"
                        )
                    ],
                ),
                Lines(
                    title="Saturation",
                    description="Segments of TCP sent again, a second.",
                    unit="short",
                    queries=[host(f"rate(node_netstat_Tcp_RetransSegs{RATE})")],
                ),
                Lines(
                    title="Errors",
                    description="Packets with errors, and dropped ones, a second.",
                    unit="pps",
                    queries=[
                        host(
                            f"sum by (instance) (rate(node_network_receive_errs_total{LINKS}{RATE})"
                            f" + rate(node_network_transmit_errs_total{LINKS}{RATE}))",
                            "{{instance}} errors",
                        ),
                        host(
                            f"sum by (instance) (rate(node_network_receive_drop_total{LINKS}{RATE}))",
                            "{{instance}} dropped",
                        ),
                    ],
                ),
            ],
        ),
        Section(
            "Care",
            [
                Table(
                    title="Reboot waits since (days)",
                    description="Hosts whose updates wait for a reboot; empty: none.",
                    unit="d",
                    alerts=["HostRebootOverdue"],
                    query=Query(
                        "(time() - (host_reboot_required_timestamp_seconds > 0)) / 86400 or vector(0)"
                    ),
                ),
                Table(
                    title="Secrets (days old)",
                    description="Since each was last rotated; one whose age is not known is the oldest.",
                    unit="d",
                    pages=["SecretTooOld"],
                    query=Query("sort_desc((time() - secret_made_timestamp_seconds) / 86400)", "{{secret}}"),
                ),
                Table(
                    title="Security updates (days ago)",
                    description="Since they last ended well; a host that makes none has no row.",
                    unit="d",
                    alerts=["HostUpdatesStale"],
                    query=Query(
                        "(time() - (host_updates_success_timestamp_seconds > 0)) / 86400 or vector(0)"
                    ),
                ),
                Lines(
                    title="Age of figures",
                    description="Since the oldest file of a host's own figures was written.",
                    unit="s",
                    pages=["HostFiguresStale"],
                    queries=[host("time() - min by (instance) (node_textfile_mtime_seconds)")],
                ),
            ],
        ),
        Section(
            "Dokploy, where there is one",
            [
                Number(
                    title="Dokploy answers",
                    description="1: it answers the monitoring, and reaches its database.",
                    unit="short",
                    alerts=["DokployDown"],
                    query=Query('min(probe_success{job="dokploy_probe"})'),
                ),
                Number(
                    title="Newest backup of Dokploy",
                    description="Age of the last one of its own state that could be read back.",
                    unit="s",
                    pages=["DokployBackupTooOld"],
                    query=Query("time() - max(dokploy_backup_timestamp_seconds)"),
                ),
                Number(
                    title="Its size",
                    description="Of that backup, encrypted.",
                    unit="bytes",
                    query=Query("max(dokploy_backup_bytes)"),
                ),
            ],
        ),
        Section(
            "Monitoring itself",
            [
                Lines(
                    title="Series",
                    description="That Prometheus holds in memory: it costs about 3 KiB for each.",
                    unit="short",
                    queries=[Query("prometheus_tsdb_head_series", "series")],
                ),
                Lines(
                    title="Memory of the monitoring",
                    description="Of each program; Grafana's is limited by `grafana_memory`.",
                    unit="bytes",
                    pages=["GrafanaDown"],
                    queries=[
                        Query(
                            'process_resident_memory_bytes{job=~"prometheus|alertmanager|blackbox|grafana"}',
                            "{{job}}",
                        )
                    ],
                ),
                Lines(
                    title="Rules that fail",
                    description="In five minutes, by group.",
                    unit="short",
                    pages=["RuleEvaluationFails"],
                    queries=[
                        Query("sum(increase(prometheus_rule_evaluation_failures_total[5m]))", "failures")
                    ],
                ),
                Lines(
                    title="Notifications that fail",
                    description="A second, by receiver's kind.",
                    unit="short",
                    pages=["NotificationsFail", "Watchdog"],
                    queries=[
                        Query(
                            "sum by (integration) (rate(alertmanager_notifications_failed_total[5m]))",
                            "{{integration}}",
                        )
                    ],
                ),
            ],
        ),
    ],
)
