"""Sweeps: many configurations trained in one compiled program. Importing this package loads neither jax nor Optuna.

- `space`: what is swept, read from Hydra's sweep language; `plan`: the rest of the command line.
- `population`: pure functions on stacked train states: training, successive halving, population-based training.
- `compiled`: their compilation and layout over devices; `cohort`: trains a group of trials with them.
- `study`: which trial comes next, and who runs it, through Optuna; `results`, `figures`, `display`: what is shown.
- `builder`: from a configuration to its algorithm, and to the command that trains it alone.
- `worker`: all of it together, as `hx.sweep` and `python -m haepo_jax.sweep`.
"""
