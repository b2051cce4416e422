"""Sweeps: many configurations trained in one compiled program. Importing this package loads neither jax nor Optuna.

What a trial is on its way, and the module that takes it there:

- `space`, `plan`: the command line in Hydra's sweep language becomes a `SweepPlan`, which knows every configuration and its algorithm.
- `study`: workers claim configurations as trials of an Optuna study, and record results in it.
- `batch`: each seed of a trial is a training run; pure functions of one run, compiled over many on all devices.
- `cohort`: trains trials together in batches of runs, with successive halving.
- `results`: the study's trials as arrays, a table and figures.
- `worker`: all of it together, and what is shown meanwhile, as `hx.sweep` and `python -m haepo_jax.sweep`.
"""
