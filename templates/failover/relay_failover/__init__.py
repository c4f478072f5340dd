"""The watcher that releases the leader key of a dead primary: `python3 -m relay_failover --help`."""
