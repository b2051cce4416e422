"""The algorithms. Each is a frozen pytree with `init`, `train_step`, `train` and `evaluate`."""
