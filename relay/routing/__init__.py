"""Which provider account serves a call."""
