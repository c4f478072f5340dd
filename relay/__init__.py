"""Relays calls to AI providers and bills each of them exactly once."""
