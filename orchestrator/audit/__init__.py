"""Is a claimed figure possible on the hardware that it is claimed of? Arithmetic alone."""
