"""`patch`: updates and reboots, one host at a time, while the fleet serves."""
