"""Differential fuzz: whatever the official SDK accepts from a provider, it accepts through the relay."""
