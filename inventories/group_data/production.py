"""What differs in production (an example: put in your own values)."""

domain = "relay.example"
secrets_file = "inventories/production.secrets.age"
# Refuse hosts whose key is not in ~/.ssh/known_hosts yet.
ssh_strict_host_key_checking = "yes"
# Restrict SSH to your own networks, for instance a VPN.
ssh_allowed_from = ["192.0.2.0/24"]
redis_maxmemory = "1gb"

# Where the authority of the edge's certificates writes to.
edge_acme_contact = "operations@relay.example"

# Who is woken, and who notices when the monitoring itself falls silent.
alert_webhook_url = "https://on-call.relay.example/alerts"
alert_watchdog_url = "https://dead-man.relay.example/relay"
alert_runbook_url = "https://git.relay.example/toolkit/monitoring/runbooks"
alert_board_url = "https://tools.relay.example/grafana"

# A cheap model that a channel of yours serves; and the page on which customers see how you are.
probe_model = "gpt-4o-mini"
edge_status_page = True

# Where backups go. The accounts' keys are secrets: s3_access_key, s3_secret_key and so on.
s3_endpoint = "s3.eu-central-1.amazonaws.com"
s3_region = "eu-central-1"
s3_uri_style = "host"
s3_bucket = "relay-example-backups"

# The log store's program: a release of VictoriaLogs, and its SHA-256 as you have checked it.
log_store_url = ""
log_store_sha256 = ""

# Grafana's package source, the address of its key, and the key's fingerprint as you have checked it.
grafana_apt_url = ""
grafana_apt_key_url = ""
grafana_apt_fingerprint = ""

# Dokploy's images, pinned by digest (inventories/group_data/all.py says how to find it), and who may open it.
dokploy_image = ""
dokploy_postgres_image = ""
dokploy_allowed_from = ["192.0.2.0/24"]
