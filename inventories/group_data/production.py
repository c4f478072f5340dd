"""What differs in production (an example: put in your own values)."""

domain = "relay.example"
secrets_file = "inventories/production.secrets.age"
# Refuse hosts whose key is not in ~/.ssh/known_hosts yet.
ssh_strict_host_key_checking = "yes"
# Restrict SSH to your own networks, for instance a VPN.
ssh_allowed_from = ["192.0.2.0/24"]
# Database hosts with 32 GB of memory.
postgres_shared_buffers = "8GB"
postgres_effective_cache_size = "20GB"
postgres_work_mem = "16MB"
postgres_maintenance_work_mem = "1GB"
postgres_max_wal_size = "8GB"
postgres_slot_wal_keep_size = "20GB"
redis_maxmemory = "1gb"

# Who is woken, and who notices when the monitoring itself falls silent.
alert_webhook_url = "https://on-call.relay.example/alerts"
alert_watchdog_url = "https://dead-man.relay.example/relay"
