"""What a user is shown as a line, without a traceback."""

from strategies.errors import Refused

__all__ = ["INTERRUPTED", "Refused", "UserError"]

INTERRUPTED = 130  # the exit status of a process that Ctrl-C ended


class UserError(Refused):
    """Input that cannot be served."""
