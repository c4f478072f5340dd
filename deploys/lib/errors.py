"""The error that commands print without a traceback."""


class DeployError(Exception):
    """Something the operator can put right; the message says what and how."""
