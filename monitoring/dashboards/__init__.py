"""The boards of Grafana as code: one module a board, its JSON in json/ (`make boards` writes it)."""
