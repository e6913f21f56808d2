"""The one error a user is shown as a line, without a traceback."""


class UserError(ValueError):
    """Input that cannot be served. The message says what was asked, what is true and what to do."""
