"""Customers' own programs, unmodified, through the edge: `make clients`."""
