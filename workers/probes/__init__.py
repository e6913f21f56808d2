"""What is recorded beside a run: samples of the machine in every run, and the spans of its steps in
an observed run only."""
