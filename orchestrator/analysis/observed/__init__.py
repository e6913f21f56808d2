"""What an observed run shows: the step taken apart, and what communication costs in it."""
