"""The algorithms; each is a frozen pytree with `init`, `train_step`, `train` and `evaluate`."""
