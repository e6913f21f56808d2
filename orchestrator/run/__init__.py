"""The loop: whose turn it is, what is left to do, what is kept."""
