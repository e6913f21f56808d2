"""The loop: starts, what is left to do, what is kept."""
