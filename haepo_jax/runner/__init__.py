"""Running a training: the only code that touches disk or clock. Importing it loads neither jax nor matplotlib."""
