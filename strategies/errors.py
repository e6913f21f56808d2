"""The one error a layout is refused with."""


class LayoutError(ValueError):
    """A layout that cannot be made; the message says what was asked, what is true and what to
    do."""
