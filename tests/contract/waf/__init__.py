"""What the WAF must let pass and what it must refuse."""
