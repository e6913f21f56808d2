"""Watching a run: its steps taken apart, which no timed run is, and the machine sampled beside it,
which every run is."""
