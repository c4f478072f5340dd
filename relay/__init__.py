"""Relays calls to AI vendors and bills each of them exactly once."""
