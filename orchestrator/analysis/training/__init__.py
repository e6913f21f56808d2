"""What runs that train say: their rows, and the layouts compared."""
