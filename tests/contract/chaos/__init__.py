"""The money chaos drill: calls at full speed while replicas and the primary are killed; then the books."""
