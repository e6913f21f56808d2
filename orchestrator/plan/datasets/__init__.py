"""Datasets as requests: what each row asks for, whatever the model. `files` reads rows from every
container, a `Format` makes an `Entry` of a row, and `registry` knows the formats."""
