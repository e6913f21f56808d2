"""From the runs of an experiment to what they say: the comparison, its statistics, verdicts."""
