"""Prices in memory and how they are published."""
