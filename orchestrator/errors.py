"""The one error a user is shown as a line, without a traceback."""

INTERRUPTED = 130  # the exit status of a process that Ctrl-C ended


class UserError(ValueError):
    """Input that cannot be served. The message says what was asked, what is true and what to do."""
