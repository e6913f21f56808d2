"""Ray: connect, reserve devices, start and end groups of workers; and what a machine has."""
