"""How a fleet is planned, applied and verified: what pyinfra alone lacks."""
