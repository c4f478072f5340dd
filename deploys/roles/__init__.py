"""What a host becomes: one module a role."""
