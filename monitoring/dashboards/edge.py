"""Edge: what customers meet first, the firewall of web applications, certificates."""

from __future__ import annotations

from monitoring.dashboards.panels import Board, Lines, Number, Query, Section, Table

RATE = "[$__rate_interval]"
LINKS = '{group="edge", device!="lo"}'

BOARD = Board(
    uid="relay-edge",
    title="Edge",
    description="The edges as a customer sees them, what the WAF matches and refuses, bytes, TLS.",
    sections=[
        Section(
            "As customers see it",
            [
                Table(
                    title="Edges that answer",
                    description="1: HTTPS with a valid certificate answers, 0: it does not.",
                    unit="short",
                    alerts=["EdgeDown"],
                    query=Query('probe_success{job="edge_probe"}'),
                ),
                Table(
                    title="Out of service since",
                    description="Hours since an edge, or a relay node, was drained; 0 alone: none is.",
                    unit="h",
                    alerts=["OutOfServiceForLong"],
                    query=Query(
                        "(time() - (relay_edge_drained_timestamp_seconds > 0 or "
                        "max by (node) (relay_edge_node_drained_timestamp_seconds) > 0)) / 3600 or vector(0)"
                    ),
                ),
                Lines(
                    title="Time of a probe",
                    description="A request of the monitoring host through each edge, TLS included.",
                    unit="s",
                    pages=["EdgeDown"],
                    queries=[Query('probe_duration_seconds{job="edge_probe"}', "{{instance}}")],
                ),
                Table(
                    title="Days until certificates end",
                    description="Of each edge and each listener inside; they are renewed a month before.",
                    unit="d",
                    alerts=["CertificateExpires", "CertificateExpiresSoon"],
                    pages=["TlsListenerDown"],
                    query=Query("sort((probe_ssl_earliest_cert_expiry - time()) / 86400)"),
                ),
                Lines(
                    title="Certificates looked after",
                    description="Since an edge last looked after its certificates by ACME without an error.",
                    unit="s",
                    pages=["EdgeCertificateRenewalFails"],
                    queries=[
                        Query("time() - relay_edge_certificate_success_timestamp_seconds", "{{instance}}")
                    ],
                ),
            ],
        ),
        Section(
            "Calls of the probe",
            [
                Table(
                    title="Calls that succeed",
                    description="The last one of each kind through each edge, as a customer makes it.",
                    unit="short",
                    alerts=["ProbeFails"],
                    query=Query("relay_probe_success"),
                ),
                Table(
                    title="Why they fail",
                    description="By what a customer meets; empty while none fails.",
                    unit="short",
                    pages=["ProbeFails"],
                    query=Query("relay_probe_failure == 1 or vector(0)"),
                ),
                Lines(
                    title="First byte of the content",
                    description="From the beginning of the connection, TLS included.",
                    unit="s",
                    queries=[Query("relay_probe_first_byte_seconds", "{{edge}} {{kind}}")],
                ),
                Lines(
                    title="Whole call",
                    description="One token: nearly all of it is the way between customer and provider.",
                    unit="s",
                    queries=[Query("relay_probe_seconds", "{{edge}} {{kind}}")],
                ),
                Lines(
                    title="Availability, one day",
                    description="Share of the probe's calls that succeeded in the day before, by edge.",
                    unit="percentunit",
                    queries=[Query("probe:availability:ratio1d", "{{edge}}")],
                ),
                Table(
                    title="Availability, 30 days",
                    description="Share of the probe's calls that succeeded, by edge.",
                    unit="percentunit",
                    query=Query("probe:availability:ratio30d"),
                ),
                Number(
                    title="Last call of the probe",
                    description="Since it last ended.",
                    unit="s",
                    alerts=["ProbeStale"],
                    query=Query("time() - max(relay_probe_timestamp_seconds)"),
                ),
            ],
        ),
        Section(
            "Status page",
            [
                Table(
                    title="Components",
                    description="What the status page shows: 1 works, 0 is out.",
                    unit="percentunit",
                    query=Query("status:component:up"),
                ),
                Lines(
                    title="Age of the page",
                    description="Where it is made, and as each edge serves it; it is renewed twice a minute.",
                    unit="s",
                    alerts=["StatusPageOld"],
                    queries=[
                        Query("time() - relay_status_published_timestamp_seconds", "{{instance}}"),
                        Query("time() - relay_status_page_timestamp_seconds", "{{instance}}"),
                    ],
                ),
            ],
        ),
        Section(
            "Traffic",
            [
                Lines(
                    title="Requests",
                    description="Requests a second by edge, as nginx counts them.",
                    unit="reqps",
                    queries=[Query(f"rate(nginx_http_requests_total{RATE})", "{{instance}}")],
                ),
                Lines(
                    title="Open connections",
                    description="By edge; waiting ones are idle between two requests.",
                    unit="short",
                    queries=[
                        Query("nginx_connections_active", "{{instance}} open"),
                        Query("nginx_connections_waiting", "{{instance}} waiting"),
                        Query("relay_slow_clients_connections", "{{instance}} of clients"),
                    ],
                ),
                Lines(
                    title="Connections that nginx dropped",
                    description="Accepted and not handled: its worker connections were used up.",
                    unit="cps",
                    queries=[
                        Query(
                            f"rate(nginx_connections_accepted{RATE}) - rate(nginx_connections_handled{RATE})",
                            "{{instance}}",
                        )
                    ],
                ),
                Lines(
                    title="Bytes",
                    description="Out above, in below, on the edges' interfaces.",
                    unit="Bps",
                    queries=[
                        Query(
                            f"sum by (instance) (rate(node_network_transmit_bytes_total{LINKS}{RATE}))",
                            "{{instance}} out",
                        ),
                        Query(
                            f"-sum by (instance) (rate(node_network_receive_bytes_total{LINKS}{RATE}))",
                            "{{instance}} in",
                        ),
                    ],
                ),
                Lines(
                    title="Slow and lost clients",
                    description="Calls a second whose customer did not read the answer, or went away.",
                    unit="reqps",
                    queries=[
                        Query(
                            'sum by (outcome) (rate(relay_requests_total{outcome=~"client_.*"}[5m]))'
                            " or vector(0)",
                            "{{outcome}}",
                        )
                    ],
                ),
                Lines(
                    title="Slow clients cut",
                    description="Connections an hour that were cut, by why: slow readers, and too old ones.",
                    unit="short",
                    pages=["SlowClientsUncut"],
                    queries=[
                        Query("sum by (why) (rate(relay_slow_clients_cut_total[15m])) * 3600", "{{why}}"),
                        Query("sum(rate(relay_slow_clients_uncut_total[15m])) * 3600", "not cut"),
                    ],
                ),
                Lines(
                    title="Status by outcome",
                    description="Calls a second behind the edges by how they ended, without good ones.",
                    unit="reqps",
                    pages=["RelayErrorRatioHigh"],
                    queries=[
                        Query(
                            'sum by (outcome) (rate(relay_requests_total{outcome!="ok"}[5m])) or vector(0)',
                            "{{outcome}}",
                        )
                    ],
                ),
            ],
        ),
        Section(
            "Bans",
            [
                Lines(
                    title="Bans on the list",
                    description="By edge; a list that is half full is told.",
                    unit="short",
                    pages=["BanListLarge", "BansNotApplied"],
                    queries=[
                        Query("sum by (instance) (relay_bans)", "{{instance}}"),
                        Query("max(relay_bans_most)", "how many there may be"),
                    ],
                ),
                Lines(
                    title="Packets of banned addresses",
                    description="Dropped packets a second, by edge.",
                    unit="pps",
                    pages=["AddressAttacks"],
                    queries=[Query(f"rate(relay_bans_dropped_packets_total{RATE})", "{{instance}}")],
                ),
                Lines(
                    title="Bans that were refused",
                    description="Bans an hour that alerts asked for and that were refused, by why.",
                    unit="short",
                    pages=["BansRefused"],
                    queries=[
                        Query(
                            "sum by (why) (rate(relay_bans_refused_total[15m])) * 3600 or vector(0)",
                            "{{why}}",
                        )
                    ],
                ),
            ],
        ),
        Section(
            "WAF",
            [
                Lines(
                    title="Refused, by rule",
                    description="Calls a minute. Where the WAF only detects: that it would have refused.",
                    unit="short",
                    alerts=["WafRefusesMany"],
                    queries=[
                        Query("sum by (rule) (rate(relay_waf_refused_total[10m])) * 60", "rule {{rule}}")
                    ],
                ),
                Lines(
                    title="Matched, by edge",
                    description="Calls a minute in which a rule matched, refused or not.",
                    unit="short",
                    queries=[
                        Query("sum by (instance) (rate(relay_waf_matched_total[10m])) * 60", "{{instance}}")
                    ],
                ),
                Number(
                    title="WAF's log read",
                    description="Since the matches of the edge that is longest unread were read.",
                    unit="s",
                    alerts=["WafLogStale"],
                    query=Query("time() - min(relay_waf_log_timestamp_seconds)"),
                ),
            ],
        ),
    ],
)
