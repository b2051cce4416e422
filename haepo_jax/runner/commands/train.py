"""Trains one algorithm on one environment: `python -m haepo_jax.train env=CartPole-v1`."""

from __future__ import annotations

from haepo_jax.runner.config import RunConfig
from haepo_jax.runner.config.arguments import read_arguments
from haepo_jax.runner.config.help import help_text
from haepo_jax.runner.entry import entry_point
from haepo_jax.runner.resume import compose_run
from haepo_jax.runner.run_dir import check_run_dir, config_text

HELP = """\
Trains one algorithm on one environment, all seeds in one compiled program.

usage: python -m haepo_jax.train env=<environment> [key=value ...]

  python -m haepo_jax.train env=CartPole-v1
  python -m haepo_jax.train env=Pendulum-v1 num_seeds=8 total_steps=1e6 algo.learning_rate=1e-3
  python -m haepo_jax.train --config runs/x/config.yaml algo.learning_rate=3e-3
  python -m haepo_jax.train env=brax/ant env_kwargs.backend=spring 'algo.entropy_coef=[0.01,0]'

options:
  --config FILE read settings from a YAML file, such as the config.yaml of a run (without its run_dir and resume);
                the command line overrides them
  --help        show this text; with algo=<name>, the hyperparameters of that algorithm
  --cfg job     print the complete settings as YAML and exit
  --list-envs   list the environments and exit
  --version     print the version and exit

settings (key, default, meaning):
{settings}

algorithms and presets (algo=<name>):
{algorithms}

hyperparameters of algo={algo} (a pair [start,end] changes linearly over the run):
{hyperparameters}

A run writes to its directory: config.yaml, metrics.jsonl (one row per logged update, with the mean over seeds and the
value of each seed), TensorBoard events, curve.png, summary.json and checkpoints; token tasks also completions.jsonl. Invalid
settings exit with a one-line error (status 2).

To resume an interrupted run: python -m haepo_jax.train run_dir=<directory> resume=true. It keeps its settings and ends
with the same numbers as an uninterrupted run. A larger total_steps extends a run: schedules, such as that of an annealed
learning_rate, depend on the fraction of total_steps done, so they jump back to their value at the new fraction.
SIGTERM and Ctrl-C save a checkpoint and stop the run; a second one quits immediately.
"""


@entry_point(lambda argv: help_text(HELP, RunConfig, argv))
def main(argv: list[str]) -> int:
    """Runs the command line; returns its exit status: 0; 1 if the run fails or diverges; 2 for invalid settings; 128 + the
    number of the signal that stopped it."""
    arguments = read_arguments(argv, ("--cfg", "--config"))
    config, directory = compose_run(arguments)
    if arguments.show_config:
        print(config_text(config.to_dict()), end="")
        return 0
    if directory is None:
        check_run_dir(config.run_dir)  # before jax is imported, which takes a second
    from haepo_jax.runner.session import dry_run, train_and_report

    if config.dry_run:
        dry_run(config, directory)
        print("the settings are usable; dry_run=true stops here")
    else:
        train_and_report(config)
    return 0
