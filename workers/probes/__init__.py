"""Taking a step apart: compute, communication, bubble. Never part of a timed run."""
