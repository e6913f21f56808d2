"""Arrow files in folders. Knows nothing of what the figures mean."""
