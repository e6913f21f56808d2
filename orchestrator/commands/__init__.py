"""What each command does once click has read what was asked, and how it is printed.

Each function imports what it needs, so that `--help` answers at once and a command starts nothing
that it does not use. Functions that return a number return the exit status.
"""

SOME_FAILED = 1
