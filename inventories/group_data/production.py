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

# Where backups go. The accounts' keys are secrets: s3_access_key, s3_secret_key and so on.
s3_endpoint = "s3.eu-central-1.amazonaws.com"
s3_region = "eu-central-1"
s3_uri_style = "host"
s3_bucket = "relay-example-backups"
