"""What is said where something that was asked for cannot be done."""


class Refused(ValueError):
    """Something that was asked for cannot be done. A user is shown the message as one line.

    It says what was asked, what is true and what to do.
    """


class LayoutError(Refused):
    """A layout that cannot be made; the message says what was asked, what is true and what to
    do."""
