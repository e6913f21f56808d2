"""From an experiment to deployments that are known to fit."""
