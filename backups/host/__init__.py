"""Programs that run on hosts: the standard library only, and PyYAML where Patroni's Python runs them."""
