"""What roles share."""
