"""What people read of runs that train: the terminal and the page."""
