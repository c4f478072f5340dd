"""The calls that a release makes to its database: recorded as it sends them, repeated on a later schema."""
