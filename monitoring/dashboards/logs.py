"""Logs: do every host's lines arrive, are they redacted, how much is kept, and is it copied."""

from __future__ import annotations

from monitoring.dashboards.panels import Board, Lines, Number, Query, Section

BOARD = Board(
    uid="relay-logs",
    title="Logs",
    description="The way of log lines from hosts to the store and into the bucket; searched on its own page.",
    hours=6,
    sections=[
        Section(
            "Is all of it there?",
            [
                Number(
                    title="Stores that answer",
                    description="Of two: business and security.",
                    unit="short",
                    pages=["LogStoreDown"],
                    query=Query('sum(up{job=~"logs-business|logs-security"})'),
                ),
                Number(
                    title="Longest silence",
                    description="Since the newest line of the host that has been silent the longest.",
                    unit="s",
                    alerts=["LogsNotArriving"],
                    query=Query("time() - min(log_host_last_line_timestamp_seconds)"),
                ),
                Number(
                    title="Fullest buffer",
                    description="Of lines that wait on a host while the store is away.",
                    unit="percentunit",
                    alerts=["LogBufferFilling"],
                    query=Query("max(logship_buffer_used_ratio)"),
                ),
                Number(
                    title="Secrets found",
                    description="Made-up ones that the last canary found as they were logged.",
                    unit="short",
                    alerts=["LogCanaryFound"],
                    query=Query("max(log_canary_found)"),
                ),
                Number(
                    title="Canary's lines missing",
                    description="That had not arrived in time.",
                    unit="short",
                    alerts=["LogCanaryMissing"],
                    query=Query("max(log_canary_missing)"),
                ),
                Number(
                    title="Copied up to",
                    description="Since the end of the last day that is in the bucket.",
                    unit="s",
                    alerts=["LogColdCopyTooOld"],
                    query=Query("time() - max(log_cold_copy_day_timestamp_seconds)"),
                ),
            ],
        ),
        Section(
            "From the hosts",
            [
                Lines(
                    title="Lines sent",
                    description="A second, by host.",
                    unit="short",
                    queries=[
                        Query(
                            "sum by (instance) (rate(logship_sent_lines_total[$__rate_interval]))",
                            "{{instance}}",
                        )
                    ],
                ),
                Lines(
                    title="Lines that wait",
                    description="By host.",
                    unit="short",
                    pages=["LogBufferFilling", "LogsNotArriving"],
                    queries=[Query("sum by (instance) (logship_queued_lines)", "{{instance}}")],
                ),
                Lines(
                    title="Lines given up",
                    description="In a quarter of an hour, by host, and by the store.",
                    unit="short",
                    alerts=["LogLinesLost"],
                    queries=[
                        Query("sum by (instance) (increase(logship_lost_lines_total[15m]))", "{{instance}}"),
                        Query("sum by (job) (increase(vl_rows_dropped_total[15m]))", "{{job}}"),
                    ],
                ),
                Lines(
                    title="Silence",
                    description="Since the newest line, by host.",
                    unit="s",
                    alerts=["LogsNotArriving"],
                    queries=[Query("time() - log_host_last_line_timestamp_seconds", "{{host}}")],
                ),
                Lines(
                    title="Measured",
                    description="Since hosts and the store were asked, the canary ran, days were copied.",
                    unit="s",
                    queries=[
                        Query("time() - min(logship_timestamp_seconds)", "hosts"),
                        Query("time() - max(log_store_figures_timestamp_seconds)", "store"),
                        Query("time() - max(log_canary_timestamp_seconds)", "canary"),
                        Query("time() - max(log_cold_copy_timestamp_seconds)", "copies"),
                    ],
                ),
                Number(
                    title="Security copies locked",
                    description="1: the bucket refuses to delete them until their time is over.",
                    unit="short",
                    query=Query("min(log_cold_copy_locked)"),
                ),
            ],
        ),
        Section(
            "The store",
            [
                Lines(
                    title="Lines kept",
                    description="That can be searched, by class.",
                    unit="short",
                    queries=[Query("sum by (job) (vl_storage_rows)", "{{job}}")],
                ),
                Lines(
                    title="Size on disk",
                    description="By class.",
                    unit="bytes",
                    queries=[Query("sum by (job) (vl_data_size_bytes)", "{{job}}")],
                ),
                Lines(
                    title="Memory",
                    description="Of each store's process.",
                    unit="bytes",
                    queries=[
                        Query(
                            'sum by (job) (process_resident_memory_bytes{job=~"logs-.+"})',
                            "{{job}}",
                        )
                    ],
                ),
                Lines(
                    title="Queries refused or slow",
                    description="In a quarter of an hour, by class.",
                    unit="short",
                    queries=[Query("sum by (job) (increase(vl_slow_queries_total[15m]))", "{{job}}")],
                ),
            ],
        ),
    ],
)
