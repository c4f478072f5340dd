"""Who calls: accounts and their tokens."""
