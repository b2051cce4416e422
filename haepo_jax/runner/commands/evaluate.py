"""Plays many episodes with a run's policies: `python -m haepo_jax.evaluate runs/x episodes=1000`."""

from __future__ import annotations

import dataclasses

from haepo_jax.algorithms.fields import COUNT
from haepo_jax.runner.config import SEEDS, setting
from haepo_jax.runner.config.arguments import compose, read_arguments, shell_command
from haepo_jax.runner.config.help import help_text
from haepo_jax.runner.entry import entry_point
from haepo_jax.runner.run_dir import read_run

HELP = """\
Plays many episodes with the policies of a run, with sampled and with greedy actions, and reports their returns.

usage: python -m haepo_jax.evaluate <run directory> [key=value ...]

  python -m haepo_jax.evaluate runs/x
  python -m haepo_jax.evaluate runs/x episodes=10000 checkpoint=best seed=3

settings (key, default, meaning):
{settings}

The results are printed and written to the run's directory: evaluation.json (with the return of every episode) and
evaluation.png. Invalid settings exit with a one-line error (status 2).
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The settings of `python -m haepo_jax.evaluate`."""

    run_dir: str = setting("", str, "directory of the run, finished or not (required)")
    episodes: int = setting(
        1000, int, "episodes per seed with sampled actions, and as many with greedy ones", within=COUNT
    )
    checkpoint: str = setting("last", str, "which checkpoint to load", choices=("last", "best"))
    seed: int | None = setting(None, int, "one of the run's seeds; null: all", within=SEEDS)
    episode_seed: int | None = setting(
        None, int, "seed of the episodes; null: that of a run's final evaluation", within=SEEDS
    )


@entry_point(lambda argv: help_text(HELP, EvaluateConfig))
def main(argv: list[str]) -> int:
    """Runs the command line; returns its exit status: 0, or 2 for settings that cannot be used."""
    config = compose(read_arguments(argv, positional="run_dir").overrides, EvaluateConfig)
    directory = read_run(config.run_dir)

    from haepo_jax.runner import policy_evaluation
    from haepo_jax.runner.devices import device_errors

    with device_errors("take one seed with seed=, or fewer episodes"):
        document = policy_evaluation.evaluate(
            directory,
            episodes=config.episodes,
            checkpoint=config.checkpoint,
            seed=config.seed,
            episode_seed=config.episode_seed,
        )
    document = {"command": shell_command("haepo_jax.evaluate", argv), **document}
    print(policy_evaluation.report(document))
    policy_evaluation.write(directory, document)
    print(f"evaluation.json and evaluation.png in {directory.path}")
    return 0
