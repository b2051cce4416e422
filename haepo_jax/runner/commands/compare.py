"""Trains several algorithms alike and compares them: `python -m haepo_jax.compare env=CartPole-v1 algo=haepo,ppo`."""

from __future__ import annotations

import dataclasses

from haepo_jax.runner.comparison import DEFAULTS, CompareConfig, compare, read_comparison
from haepo_jax.runner.config import RunConfig
from haepo_jax.runner.config.arguments import read_arguments
from haepo_jax.runner.config.help import help_text, settings_table
from haepo_jax.runner.entry import entry_point

HELP = """\
Trains several algorithms on the same environments, all seeds of an algorithm in one compiled program, and compares
them in a figure, a table and a JSON document.

usage: python -m haepo_jax.compare env=<environment>[,...] algo=<name>[,...] [key=value ...]

  python -m haepo_jax.compare env=CartPole-v1
  python -m haepo_jax.compare env=CartPole-v1,Acrobot-v1 algo=haepo,haepo_paper,ppo num_seeds=5 total_steps=2e5
  python -m haepo_jax.compare env=CartPole-v1 algo=haepo,ppo algo.num_envs=64 haepo.kl_coef=0.5 ppo.learning_rate=1e-3

options:
  --help        show this text
  --list-envs   list the environments and exit

settings of the comparison (key, default, meaning):
{settings}

settings shared by all runs:
{shared}

hyperparameters: algo.<key>= sets one for every algorithm that has it, <name>.<key>= for one algorithm; python -m
haepo_jax.train --help algo=<name> lists them. Algorithms and presets:
{algorithms}

A comparison writes comparison.json, comparison.md and comparison.png to its directory, and each run to a subdirectory
named after its algorithm (and environment, if there are several), with the files that haepo_jax.train writes. The same
command with the same run_dir resumes it. Invalid settings exit with a one-line error (status 2).
"""


def _help(argv: list[str]) -> str:
    shared = (f for f in dataclasses.fields(RunConfig) if f.name not in CompareConfig.__dataclass_fields__)
    return help_text(HELP, CompareConfig, argv, shared=settings_table(shared, defaults=DEFAULTS))


@entry_point(_help)
def main(argv: list[str]) -> int:
    """Runs the command line; returns its exit status: 0, or 2 for settings that cannot be used."""
    directory, runs = read_comparison(read_arguments(argv).overrides)
    from haepo_jax.runner.program import build

    # A combination that does not work is refused before the first run is trained.
    for config in runs.values():
        build(config)
    if next(iter(runs.values())).dry_run:
        print("the settings are usable; dry_run=true stops here")
    else:
        compare(directory, runs, argv)
    return 0
