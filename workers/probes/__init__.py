"""What is observed of a run: the spans of its steps, in an observed run only; and samples of the
machine beside it, in every run."""
