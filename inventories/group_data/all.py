"""Every setting and its default. An environment's own file (sandbox.py, production.py) overrides these."""

# --- environment -----------------------------------------------------------------------------------------
# DNS domain of the fleet: hosts are NAME.domain, the API is api.domain.
domain = "relay.example"
# Where locks, the audit log of runs and the like are kept on the control machine.
state_directory = "~/.local/state/relay-toolkit"
# The age-encrypted file of secrets, relative to the repository.
secrets_file = ""
# The age identity that opens it; empty: the path in the environment variable RELAY_SECRETS_KEY.
secrets_key_file = ""

# --- SSH -------------------------------------------------------------------------------------------------
# Account that deploys log in with; it needs passwordless sudo and an authorised key.
ssh_user = "deploy"
# Host keys are checked: `yes` refuses unknown hosts, `accept-new` trusts a host the first time it is seen.
ssh_strict_host_key_checking = "accept-new"
# Public keys that may log in as the deploy user; empty: leave the authorised keys as they are.
ssh_authorized_keys: list[str] = []
# CIDR blocks that may reach SSH; empty: from anywhere (keys only, root refused).
ssh_allowed_from: list[str] = []

# --- runs ------------------------------------------------------------------------------------------------
# After how many seconds without a sign of life `apply` goes on without a host.
host_silence_seconds = 30
# Longest time that one command of an operation may take on a host.
operation_seconds = 1800

# --- base ------------------------------------------------------------------------------------------------
# Whether the host may set the clock. Containers share their machine's clock and must not.
set_clock = True
# NTP servers or pools for chrony; empty: the distribution's own.
ntp_servers: list[str] = []
# Install security updates every night.
unattended_upgrades = True
# Most disk space that the journal may take on a host, and how long entries stay.
journal_max_use = "1G"
journal_max_retention = "30day"

# --- validation ------------------------------------------------------------------------------------------
# Days that a host certificate must still be valid for `plan` and `apply` to go on.
certificate_days_left = 30
# How old a secret may be before somebody is told to rotate it (`python -m deploys secrets rotate`), in days.
secret_max_age_days = 365

# --- edge ------------------------------------------------------------------------------------------------
# Requests a second, the burst above it, and calls at a time that one client may make; a client is a key or,
# without one, an address.
edge_client_rate = 10
edge_client_burst = 20
edge_client_connections = 256
# The wider limit of one address, whatever keys it shows, and its connections at a time.
edge_address_rate = 200
edge_address_burst = 400
edge_address_connections = 512
# Load balancers and the like (CIDR) that may say which client they pass on, in X-Forwarded-For.
edge_trusted_proxies: list[str] = []
# Largest request body, as nginx writes sizes: of a call, of one with files, and of the console's forms. The
# relay takes what the edge lets through.
edge_body_max = "20m"
edge_upload_max = "26m"
edge_form_max = "1m"
# Bytes a second that a client must send of a body, or read of an answer that waits for it, over half a
# minute; who is slower is cut. A mobile phone with a bad connection makes some 8000.
edge_slowest_client = 1024
# How long the relay may be silent within one call, as nginx writes times; above the time-out for providers
# and the time to settle, so that the relay's answer wins.
edge_read_timeout = "700s"
# How long to wait for a connection to a relay, and for how long others are tried when there is none.
edge_connect_timeout = "1s"
edge_retry_timeout = "5s"
# How long a reload lets running calls end: longer than the longest stream.
edge_drain_timeout = "1h"

# Where the edge's certificates come from: acme (a public authority), fleet (the fleet's own CA, which your
# customers would have to trust) or host (you put edge.crt and edge.key into /etc/nginx/relay/tls).
edge_certificate = "acme"
# Names in them; empty: all that the edge serves.
edge_certificate_names: list[str] = []
# The authority's directory (empty: the sandbox's own, on a host of `provider`), and the mail address that it
# may write to; with it you accept the authority's terms.
edge_acme_directory = "https://acme-v02.api.letsencrypt.org/directory"
edge_acme_contact = ""
# File on the hosts with the authority of the directory's own HTTPS; empty: those that the system trusts.
edge_acme_ca_file = ""
# How names are proven: http-01 (port 80 of any edge), or dns-01: a program of yours, relative to the
# repository, that is called with `auth` or `cleanup` and with CERTBOT_DOMAIN and CERTBOT_VALIDATION in its
# environment. Its token (`secrets ENV --set edge_acme_dns_token`) is in /etc/relay/acme/dns.token.
edge_acme_challenge = "http-01"
edge_acme_dns_hook = ""
# File on the hosts of `edge` and `ops` with the authority of the edge's certificates; empty: one that systems
# know.
edge_ca_file = ""
# HTTP/3 beside HTTP/2: auto (where the host's nginx has it: Debian 13's, not Debian 12's; UDP 443 is opened
# only there), on (an nginx without it is an error) or off.
edge_http3 = "auto"

# The web application firewall: on, detect (nothing is refused, all is logged) or off.
edge_waf = "on"
# How strict the core rule set is, 1 to 4; from 2 on it refuses usual clients.
edge_waf_paranoia = 1
# What its rules must not refuse, relative to the repository.
edge_waf_exceptions = "inventories/waf_exceptions.yml"
# Where the core rule set lies on the host: the distribution's, or a newer one that you put there. Debian 12
# packages 3.3.4; version 4 is in no repository of it, so none is installed by itself, nor is it tested.
edge_crs_setup = "/etc/modsecurity/crs/crs-setup.conf"
edge_crs_rules = "/usr/share/modsecurity-crs/rules"
# Whether console.domain passes on the relay's web pages.
edge_console = False
# Whether status.domain shows the status page, from each edge's own disk.
edge_status_page = False
# Operators' tools as tools.domain/NAME/, beside Grafana: {"wiki": "10.0.0.41:8000"}; and who may see all of
# them (CIDR).
edge_tools: dict[str, str] = {}
edge_tools_allowed_from: list[str] = []
# Where people report weaknesses (security.txt): mailto:, https: or tel:. Empty: no such file.
edge_security_contact = ""

# An address that one of the edges holds, the first one that serves (keepalived, VRRP): ADDRESS/PREFIX; empty:
# DNS or a balancer finds the edges. Its interface, and an id that nobody else in the network uses (1 to 255).
edge_virtual_address = ""
edge_virtual_interface = "eth0"
edge_virtual_router_id = 51

# --- bans ------------------------------------------------------------------------------------------------
# Networks (CIDR) that are never banned. The fleet's hosts, ssh_allowed_from, edge_tools_allowed_from and
# edge_trusted_proxies never are. Where SSH is open to everybody, name here where operators come from.
ban_never: list[str] = []
# The widest network that may be banned, as the length of its prefix, and how many bans a host may hold.
ban_widest_ipv4 = 24
ban_widest_ipv6 = 48
ban_most = 10000
# The longest ban that an alert may ask for.
ban_longest_by_alert = "1h"

# Whether fail2ban watches logins: over SSH on every host, and at the names for people (console, tools).
# So many failures within so long ban an address for so long.
ban_logins = True
ban_login_failures = 5
ban_login_window = "10m"
ban_login_time = "1h"
# Paths at which people log in there, a regular expression.
ban_login_paths = r"/(?:[A-Za-z0-9_.-]+/){0,4}(?:login|signin|sign-in|sessions?|auth)/?"

# --- monitoring ------------------------------------------------------------------------------------------
# Whether alerts must have somewhere to go; only a fleet that nobody depends on may do without.
alerts_required = True
# Where alerts go: the address of a webhook that wakes people. Empty: nowhere but Alertmanager's page on ops.
alert_webhook_url = ""
# Where the Watchdog goes, which always fires: a service elsewhere that pages when it is silent. Empty: off.
alert_watchdog_url = ""
# Who else is told, and by which kind of way. What proves who sends is a secret, which `secrets ENV --set
# alert_NAME` takes (with _ for - in the name):
#   {"kind": "webhook", "url": ADDRESS}          any service that takes Alertmanager's JSON
#   {"kind": "webhook-token", "url": ADDRESS}    ... and a bearer token, its secret
#   {"kind": "mail", "to": [ADDRESS, ...]}       see alert_mail_server
#   {"kind": "pagerduty"}, {"kind": "opsgenie"}  telephone and SMS; the service's key is the secret
#   {"kind": "sns", "phone_number": "+15550100", "region": "eu-central-1", "access_key": ID}
#                                                SMS by Amazon; the account's secret access key is the secret
alert_receivers: dict[str, dict[str, object]] = {}
# Which of them are told of what: {"to": [NAME, ...], "severity": ["critical"], "team": ["money"]}.
# Severities are critical and warning; teams are money, data, security and platform (whose alert is whose:
# deploys/lib/alerting.py). Without either, of all. An alert goes by every entry that takes it, and without
# one to alert_webhook_url, whose name in `to` is on-call.
alert_routes: list[dict[str, list[str]]] = []
# The server for mail, HOST:PORT, which must speak STARTTLS; whom mail comes from; and the account there, with
# the secret alert_mail_password. Empty: no mail, no account.
alert_mail_server = ""
alert_mail_from = ""
alert_mail_user = ""
# Where people read the pages of monitoring/runbooks and the boards (Grafana): addresses to which /NAME.md and
# /d/ID are added. Empty: alerts carry the page's path and the board's id.
alert_runbook_url = ""
alert_board_url = ""
# How long Prometheus keeps samples, and the disk space they may take. A monthly report needs its whole month.
metrics_retention = "100d"
metrics_retention_size = "20GB"

# The model that the probe calls through each edge every minute, one token, whole and streaming; empty: no
# probe. For the probe's account it is free; what the provider asks, for about 30,000 tokens of prompt a day
# and edge, is yours. And after how many seconds such a call has failed.
probe_model = ""
probe_seconds = 20

# --- status page -----------------------------------------------------------------------------------------
# What it calls the service; empty: the API's name. And where it lies in the bucket (`s3_bucket`).
status_title = ""
status_path = "/status"

# --- healer ----------------------------------------------------------------------------------------------
# Whether a program mends what a machine can, when an alert fires whose rule has the label `heal`: off, dry
# (it says what it would do) or act. People are told either way. What may be done: deploys/roles/mend.py. The
# file /etc/relay/healer.stop on the first host of ops stops every act at once. Switched off later, what runs
# is left running without alerts, and its ports are closed.
healer = "dry"
# How long a target rests between two acts, and how many acts an hour there may be.
healer_cooldown = "10m"
healer_most_an_hour = 6
# How long an alert may take to end after an act before the act counts as of no use.
healer_verify = "4m"
# How long a provider's channel that failed is off before it is tried again.
healer_channel_rest = "10m"
# To how many US dollars a day an account above its cost budget is throttled.
healer_throttle_usd_day = 1

# --- logs ------------------------------------------------------------------------------------------------
# Whether every host's logs are collected on ops: auto (where the store's program can be had), required or
# off. Switched off later, what runs is left running and its port is closed.
log_store = "auto"
# The store's program, VictoriaLogs: the address of a release (a program or a .tar.gz) and its SHA-256; or,
# where there is no address, a file on the control machine.
log_store_url = ""
log_store_sha256 = ""
log_store_program = ""
# How long lines can be searched: business, and security (logins, sudo, what the WAF refused, bans).
log_business_retention = "183d"
log_security_retention = "366d"
# The most disk space that each of the two may take, and the memory it plans with.
log_store_disk = "20GB"
log_store_memory = "128MiB"
# Where each day's lines are copied to in the bucket, and for how many days nobody may delete copies of
# security logs, where the bucket was made with object lock (s3_lock_days).
log_cold_path = "/logs"
log_cold_lock_days = 366
# How much of each of the two waits on a host's disk while the store is away, in megabytes.
log_buffer_mb = 512

# --- Grafana ---------------------------------------------------------------------------------------------
# Whether the first host of ops has Grafana: auto (where its package source is named), required or off.
# Operators open it as tools.domain/grafana/ (edge_tools_allowed_from); without them it is reached on its host
# only. Switched off later, what runs is left running, and its port is closed.
grafana = "auto"
# Grafana's APT source, the address of the key that signs it and the key's fingerprint (40 hex digits in
# capitals), as its documentation gives them. The source may install the package grafana and no other.
grafana_apt_url = ""
grafana_apt_key_url = ""
grafana_apt_fingerprint = ""
# The package's version; empty: the newest when it is first installed, which later deploys leave alone.
grafana_version = ""
# The most memory that it may take.
grafana_memory = "512M"
# Its data source for the log store: the address of a release of VictoriaLogs' plugin (.zip or .tar.gz) and
# its SHA-256. Without it logs are searched on the store's own page.
grafana_logs_plugin_url = ""
grafana_logs_plugin_sha256 = ""

# --- etcd ------------------------------------------------------------------------------------------------
# How often the leader is heard, and how long without it until another is elected (ten times as much).
etcd_heartbeat_ms = 200
etcd_election_ms = 2000

# --- PostgreSQL ------------------------------------------------------------------------------------------
# Major version of the hosts' distribution: Debian 12 has 15, Debian 13 has 17, Ubuntu 24.04 has 16.
postgres_version = 15
# Seconds: how long a dead primary keeps its lease (20 is the least that Patroni takes), how often members
# look, and how long they retry; loop_wait + 2 * retry_timeout must not exceed ttl.
patroni_ttl = 20
patroni_loop_wait = 2
patroni_retry_timeout = 9
# Stop writing rather than acknowledge what only one host has, when no replica is left.
postgres_synchronous_strict = True
# What a new replica is built from: primary (a copy of it), or repository (the newest backup, where it is of
# the primary's timeline; else a copy). The second spares the primary of a large database.
postgres_replicas_from = "primary"
# When the primary's host is dead, release its leader key at once instead of waiting for patroni_ttl. It needs
# strict synchronous mode; how it stays safe: templates/failover/relay_failover/rules.py.
fast_failover = True
# How long the primary must not have answered any other database host, on any path.
fast_failover_unreachable_seconds = 2
# Connections; each replica of the relay keeps a pool of them.
postgres_max_connections = 200
# Memory and WAL, as PostgreSQL writes amounts ("8GB"). Empty: computed from the smallest database host's
# memory_gb, cpus and disk_gb (deploys/lib/postgres_tuning.py). shared_buffers needs a restart: replicas
# first, then a switchover.
postgres_shared_buffers = ""
# What the planner takes to be cached.
postgres_effective_cache_size = ""
# Memory of one sort or hash, and of one vacuum or index build.
postgres_work_mem = ""
postgres_maintenance_work_mem = ""
# WAL between two checkpoints, and the most that is kept for a replica that is away.
postgres_max_wal_size = ""
postgres_slot_wal_keep_size = ""
# Whether the host is reset when Patroni stops looking after a primary: auto (where /dev/watchdog is),
# required (no host without one becomes primary) or off.
postgres_watchdog = "auto"

# With less room than this for its data a primary hands over to a replica that has more: megabytes, or percent
# of the disk, whichever is more. The reserve is a file beside the data that is freed first.
postgres_disk_handover_mb = 2048
postgres_disk_handover_percent = 5
postgres_disk_reserve_mb = 1024

# --- cache -----------------------------------------------------------------------------------------------
# Memory for limits and sessions; the least recently used entries go first.
redis_maxmemory = "64mb"

# --- object store (sandbox; production has an S3 of its own elsewhere) -------------------------------------
# Megabytes of one volume file, and how many there may be.
objectstore_volume_mb = 256
objectstore_volumes = 40

# --- backups ---------------------------------------------------------------------------------------------
# The S3 store: its host name (not an address, no scheme); empty: the fleet's own, on a host of `vault`.
s3_endpoint = ""
s3_port = 443
s3_region = "us-east-1"
# path: https://HOST/BUCKET/KEY; host: https://BUCKET.HOST/KEY (AWS).
s3_uri_style = "path"
# File on the hosts with the authority of the store's certificate; empty: those that the system trusts.
s3_ca_file = ""
# The bucket, and the directory in it.
s3_bucket = "backups"
backup_path = "/relay"
# Days that overwritten and deleted objects can still be brought back, and days that nobody at all may delete
# a new object for good (0: no lock; a bucket is given it when it is made).
s3_noncurrent_days = 30
s3_lock_days = 0
# What the store asks for a gigabyte (10^9 bytes) a month, in US dollars, and what the bucket may cost a month
# before an alert says so; 0: it is not told, or not limited.
s3_price_usd_gb_month = 0.023
backup_cost_limit_usd_month = 100
# When full backups are made, as systemd writes times.
backup_time = "*-*-* 02:15:00 UTC"
# How far WAL may be behind: an incomplete segment is archived after so many seconds.
backup_archive_seconds = 60
# Processes that compress and send.
backup_process_max = 2
# The newest backup of so many days, weeks and months is kept.
backup_keep_days = 7
backup_keep_weeks = 4
backup_keep_months = 6
# When a random point of the backups is restored beside the fleet and proven, as systemd writes times; how old
# the last good drill may be; and how much memory the restored database may take on the ops host.
drill_time = "Sun *-*-* 03:30:00 UTC"
drill_max_age_days = 8
drill_memory_max = "1G"

# --- swarm -----------------------------------------------------------------------------------------------
# How many relay hosts (the first ones) manage the swarm: odd. Others join as workers.
swarm_managers = 3

# --- Dokploy ---------------------------------------------------------------------------------------------
# Whether the host of the group `dokploy` runs Dokploy: auto (where its images are named), required or off.
# Switched off later, what runs is left running. deploys/RUNBOOK.md ("Dokploy runs here") has how it is used.
dokploy = "auto"
# Its images and that of its database, pinned: NAME:TAG@sha256:64 hex digits. Dokploy 0.30.2 or newer,
# PostgreSQL 16. `docker buildx imagetools inspect dokploy/dokploy:v0.30.2 --format '{{.Manifest.Digest}}'`
# says a tag's digest; another version is another line here, then apply: there is no way back to an older one.
dokploy_image = ""
dokploy_postgres_image = ""
# The owner's account, which apply makes; empty: dokploy@DOMAIN. Its password: `secrets show ENV
# dokploy_owner_password`.
dokploy_owner_email = ""
# Networks (CIDR) whose operators may open https://HOST:9434; empty: only through SSH
# (`ssh -L 3000:127.0.0.1:3000 HOST`). Port 3000 itself is closed to everybody.
dokploy_allowed_from: list[str] = []
# The most memory that it may take.
dokploy_memory = "2G"
# When its database and /etc/dokploy are backed up, as systemd writes times, and where to in the bucket.
dokploy_backup_time = "*-*-* 03:10:00 UTC"
dokploy_backup_path = "/dokploy"

# --- relay -----------------------------------------------------------------------------------------------
# Change it to make the image's base anew from the distribution's current packages.
relay_base_epoch = "1"
# Who deploys the relay's stack: swarm (`docker stack deploy`), or dokploy (through Dokploy 0.30.2 or newer).
# Whether it runs is asked of Swarm, either way. deploys/RUNBOOK.md says how to change it.
relay_deployed_by = "swarm"
# The stack's name in Swarm. Dokploy chooses it, and says it when it is another one than here.
relay_stack = "relay"
# Dokploy's address as this machine reaches it: https, or http at the end of a tunnel on this machine; and a
# file with the authority of its certificate, where systems do not know it. Its API key is the secret
# relay_dokploy_key (`dokploy key ENV`, or `secrets ENV --set relay_dokploy_key`).
relay_dokploy_url = ""
relay_dokploy_ca_file = ""
# The project and the environment that the stack is in, made where they are missing.
relay_dokploy_project = "relay"
relay_dokploy_environment = "production"
# Where customers who run out of credit are sent; empty: the console's page where there is one (edge_console),
# else no address is named.
relay_topup_url = ""
# Whose web pages may call the API from a browser: origins, separated by commas, or "*"; empty: none.
relay_cors_origins = ""
# Tokens that an answer may have when the call does not say: by model, "*" for the others.
relay_model_max_output = "*=4096"
# Fields of a request that the relay does not know: pass, drop or refuse, where a channel does not say.
relay_unknown_fields = "pass"
# Customers' streams get a ping after so long without a word from the provider.
relay_ping_seconds = 12
# Longest time that a whole call may take; `plan` sees to it that the edge waits longer.
relay_provider_timeout_seconds = 600
# How long a connection to a provider may take to open; then the next channel is asked.
relay_provider_connect_seconds = 5
# An HTTP proxy through which providers of https are reached, as http://proxy.example.com:3128; empty: none.
relay_provider_proxy = ""
# How long a call waits for Redis; then its replica counts limits alone, and asks Redis again a second later.
relay_redis_timeout_seconds = 0.25
# How long a call waits for its hold while the database is away: longer than a failover.
relay_hold_wait_seconds = 30
# How many calls of a replica may wait so, each with its request in memory; the next ones are refused at once.
relay_hold_wait_calls = 2000
# How long a capture is tried again while the database is away: longer than a failover.
relay_settle_seconds = 60
# How long a hold outlives any call and its settlement before the sweeper ends it: at least 10.
relay_hold_margin_seconds = 60
# Most memory that one replica may take.
relay_memory = "1G"
# How much of it customers' requests may fill before larger ones than 256 KB are refused (503), in bytes: a
# quarter, since reading and sending one takes as much again, more than once.
relay_bodies_bytes = 256 << 20
# How much of it providers' whole answers may fill before larger ones than 256 KB wait for each other, in
# bytes: an eighth.
relay_answers_bytes = 128 << 20
# A replica that is being replaced answers new calls for so long, until edges have closed what they kept ...
relay_drain_seconds = 5
# ... and finishes its streams for so long. Then it settles (relay_settle_seconds).
relay_grace_seconds = 120
# Docker kills it after this time: at least the three together.
relay_stop_grace = "190s"
# DEBUG, INFO, WARNING or ERROR.
relay_log_level = "INFO"
