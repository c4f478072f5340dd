"""Request rate and concurrency of a token, shared by all replicas."""
