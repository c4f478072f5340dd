"""Which vendor account serves a call."""
