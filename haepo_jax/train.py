"""Trains one algorithm on one environment: `python -m haepo_jax.train env=CartPole-v1`."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence

from haepo_jax import config as configuration
from haepo_jax.config import RunConfig
from haepo_jax.envs import list_envs
from haepo_jax.training.entry import entry_point
from haepo_jax.training.run_dir import check_run_dir, config_text, create_run_dir

HELP = """\
Trains one algorithm on one environment; every seed trains in the same compiled program.

usage: python -m haepo_jax.train env=<environment> [key=value ...]

  python -m haepo_jax.train env=CartPole-v1
  python -m haepo_jax.train env=Pendulum-v1 num_seeds=8 total_steps=1e6 algo.learning_rate=1e-3
  python -m haepo_jax.train env=brax/ant env_kwargs.backend=spring 'algo.entropy_coef=[0.01,0]'

options:
  --help        this text; with algo=<name>, that algorithm's hyperparameters
  --cfg job     print the complete settings as YAML and stop
  --list-envs   print the environments' names and stop

settings (key, default, meaning):
{settings}

algorithms and presets (algo=<name>):
{algorithms}

hyperparameters of algo={algo} (a pair [start,end] changes linearly over the run):
{hyperparameters}

A run leaves in its directory: config.yaml, metrics.jsonl (one row per logged update, every seed's values beside their
mean), TensorBoard events, curve.png and summary.json. Settings that cannot be used end with exit status 2.
"""


def help_text(algo: str) -> str:
    """What `--help` prints, with the hyperparameters of one algorithm."""
    fields, defaults = configuration.hyperparameter_fields(algo), configuration.hyperparameter_defaults(algo)
    return HELP.format(
        settings=configuration.settings_table(dataclasses.fields(RunConfig)),
        algorithms=configuration.algorithm_table(),
        algo=algo,
        hyperparameters=configuration.settings_table(fields.values(), "algo.", defaults),
    )


@entry_point
def main(argv: list[str]) -> int:
    """Runs the command line; returns its exit status: 0, or 2 for settings that cannot be used."""
    if "--help" in argv or "-h" in argv:
        print(help_text(configuration.requested_algorithm(argv)), end="")
        return 0
    arguments = configuration.read_arguments(argv)
    if arguments.list_envs:
        print("\n".join(list_envs()))
        return 0
    config = configuration.compose(arguments.overrides, RunConfig)
    if arguments.show_config:
        print(config_text(config), end="")
        return 0
    return _dry_run(config) if config.dry_run else train(config, argv)


def _dry_run(config: RunConfig) -> int:
    check_run_dir(config)
    from haepo_jax.training.loop import build

    build(config)
    print("the settings are usable; dry_run=true stops here")
    return 0


def train(config: RunConfig, argv: Sequence[str]) -> int:
    """Trains as configured, with the display and the files that a run on the command line has."""
    # The directory is tried before jax is loaded, so that a mistake in it is not paid for with seconds.
    directory = create_run_dir(config)
    config = dataclasses.replace(config, run_dir=str(directory.path))
    try:
        from haepo_jax.training import loggers
        from haepo_jax.training.loop import run
        from haepo_jax.training.progress import Progress

        command = shlex.join(["python", "-m", "haepo_jax.train", *argv])
        observers = [loggers.FileLogger(directory, command), loggers.CurveLogger(directory)]
        if config.tensorboard:
            observers.append(loggers.TensorBoardLogger(directory))
        if config.wandb:
            observers.append(loggers.WandbLogger(directory))
        run(config, directory.path, [*observers, Progress()])
    finally:
        directory.remove_if_empty()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
