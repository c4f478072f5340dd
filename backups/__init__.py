"""Backups of the ledger's database: made, checked, thinned out, and restored."""
