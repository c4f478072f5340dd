"""How the database comes back: backup, restore, failover and drill, for people on call."""
