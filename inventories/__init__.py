"""Who the hosts are, one file an environment."""
