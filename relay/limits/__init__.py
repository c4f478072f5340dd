"""What callers may use: requests and tokens a minute, calls at a time, shared by all replicas."""
