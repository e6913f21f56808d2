"""From tables to figures: typed rows and pure functions, each definition in one place."""
