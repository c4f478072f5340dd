"""The boards of Grafana as code: one module a board, its JSON committed in json/ (`make boards` writes it).

There is no board for logs yet: it needs the log store.
"""
