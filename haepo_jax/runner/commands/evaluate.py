"""Plays many episodes with a run's policies: `python -m haepo_jax.evaluate run_dir=runs/x episodes=1000`."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from haepo_jax.algorithms import fields as hp
from haepo_jax.messages import one_line
from haepo_jax.runner.config import ConfigError, setting
from haepo_jax.runner.config.arguments import compose, read_arguments
from haepo_jax.runner.config.help import help_text
from haepo_jax.runner.entry import entry_point
from haepo_jax.runner.errors import disk_errors
from haepo_jax.runner.progress import number
from haepo_jax.runner.run_dir import RunDir, json_text, write_atomically
from haepo_jax.runner.statistics import describe_returns

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from haepo_jax.algorithms.base import Algorithm
    from haepo_jax.algorithms.state import TrainState

HELP = """\
Plays many episodes with the policies of a run, with sampled and with greedy actions, and says how they end.

usage: python -m haepo_jax.evaluate run_dir=<directory> [key=value ...]

  python -m haepo_jax.evaluate run_dir=runs/x
  python -m haepo_jax.evaluate run_dir=runs/x episodes=10000 checkpoint=best seed=3

settings (key, default, meaning):
{settings}

The results are printed and left in the run's directory: evaluation.json (with every episode's return) and
evaluation.png. Settings that cannot be used end with exit status 2.
"""

CHUNK = 1000
"""Episodes played side by side for each seed."""

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The settings of `python -m haepo_jax.evaluate`."""

    run_dir: str = setting("", str, "the directory of the run, finished or not (required)")
    episodes: int = setting(1000, int, "episodes for each seed, and as many with greedy actions", within=hp.COUNT)
    checkpoint: str = setting("last", str, "which state of the run", choices=("last", "best"))
    seed: int | None = setting(
        None, int, "one of the run's seeds, by its own number; null: all", within=hp.Range(0, 2**31 - 1)
    )
    episode_seed: int | None = setting(
        None,
        int,
        "of starts, actions and transitions; null: the episodes that every run ends with",
        within=hp.Range(0, 2**31 - 1),
    )


def read_run(run_dir: str) -> RunDir:
    """The directory that a command's `run_dir=` names; raises ConfigError where it is missing or no run."""
    if not run_dir:
        raise ConfigError("run_dir= is missing: name the directory of a run")
    directory = RunDir(Path(run_dir))
    directory.read_config()
    return directory


def warn(text: str) -> None:
    """Tells on the command line what is wrong with a checkpoint that was passed over."""
    print(f"warning: {one_line(text)}; taking the one before", file=sys.stderr)


@entry_point(lambda argv: help_text(HELP, EvaluateConfig))
def main(argv: list[str]) -> int:
    """Runs the command line; returns its exit status: 0, or 2 for settings that cannot be used."""
    config = compose(read_arguments(argv).overrides, EvaluateConfig)
    directory = read_run(config.run_dir)

    import jax

    from haepo_jax.runner.loading import load_run, seed_lane

    algorithm, run, states = load_run(directory, config.checkpoint, warn)
    seeds = list(range(run.seed, run.seed + run.num_seeds))
    if config.seed is not None:
        lane = seed_lane(run, config.seed)
        seeds, states = [config.seed], jax.tree.map(lambda x: x[lane : lane + 1], states)
    played = play(algorithm, states, config.episodes, config.episode_seed)

    document = {
        "command": shlex.join(["python", "-m", "haepo_jax.evaluate", *argv]),
        "env": run.env,
        "algo": run.algo.name,
        "checkpoint": config.checkpoint,
        "env_steps_per_seed": np.atleast_1d(states.env_steps.to_int()).tolist(),
        "seeds": seeds,
        "episodes": config.episodes,
        "episode_seed": config.episode_seed,
        **{
            kind: {"statistics": summarise(values["return"], seeds), **_listed(values)}
            for kind, values in played.items()
        },
    }
    print(report(document, played))
    title = f"{run.algo.name} on {run.env}, {config.episodes:,} episodes{' a seed' if len(seeds) > 1 else ''}"
    from haepo_jax.runner.plots import write_figure

    with disk_errors(directory.path, "evaluation"):
        write_atomically(directory.path / "evaluation.json", json_text(document) + "\n")
        write_figure(
            histogram_figure({kind: values["return"] for kind, values in played.items()}, title),
            directory.path / "evaluation.png",
        )
    print(f"evaluation.json and evaluation.png in {directory.path}")
    return 0


def play(
    algorithm: Algorithm, states: TrainState, episodes: int, episode_seed: int | None
) -> dict[str, dict[str, Array]]:
    """`sampled` and `greedy`: `return` and `length`, (seeds, episodes) each, of states with a leading axis of seeds.

    The seeds share the episodes' keys. Without `episode_seed` the first chunk is the evaluation that runs end with.
    """
    import jax

    from haepo_jax.algorithms.running import EVALUATION_SEED

    key = jax.random.key(EVALUATION_SEED if episode_seed is None else episode_seed)

    size = min(CHUNK, episodes)

    @jax.jit
    def chunk(states: TrainState, key: jax.Array) -> dict[str, Any]:
        def both(state: TrainState) -> dict[str, Any]:
            return {
                kind: algorithm.evaluate(state, episodes=size, greedy=greedy, key=key)
                for kind, greedy in (("sampled", False), ("greedy", True))
            }

        return jax.vmap(both)(states)

    parts = [
        jax.device_get(chunk(states, jax.random.fold_in(key, index) if index else key))
        for index in range(-(-episodes // size))
    ]
    # Of the last chunk only as many as are asked for: an episode is the same beside however many others.
    return dict(jax.tree.map(lambda *x: np.concatenate(x, axis=1)[:, :episodes].astype(np.float64), *parts))


def summarise(returns: Array, seeds: list[int]) -> list[dict[str, Any]]:
    """Statistics of returns (seeds, episodes): a row for each seed, whose interval resamples episodes; and where there
    are several, a last one over the seeds' means, whose interval resamples seeds."""
    rows = [{"seed": seed, **describe_returns(values)} for seed, values in zip(seeds, returns, strict=True)]
    if len(seeds) > 1:
        rows.append({"seed": None, **describe_returns(returns.mean(axis=1))})
    return rows


def _listed(values: dict[str, Array]) -> dict[str, Any]:
    return {"return": values["return"].tolist(), "length": values["length"].astype(int).tolist()}


def report(document: dict[str, Any], played: dict[str, dict[str, Array]]) -> str:
    """The tables that are printed."""
    steps = document["env_steps_per_seed"]
    lines = [
        f"{document['algo']} on {document['env']}, {document['checkpoint']} checkpoint, "
        f"after {sum(steps) // len(steps):,} steps{' per seed' if len(steps) > 1 else ''}"
    ]
    for kind, values in played.items():
        lines += ["", f"{kind} actions, {document['episodes']:,} episodes{' a seed' if len(steps) > 1 else ''}"]
        lines.append(f"  {'seed':>8} {'mean':>10} {'IQM':>10} {'95% interval':>22} {'min':>10} {'max':>10}")
        for row in document[kind]["statistics"]:
            name = "all" if row["seed"] is None else str(row["seed"])
            low, high = row["iqm_interval"]
            interval = "-" if np.isnan([low, high]).any() else f"{number(low)} to {number(high)}"
            cells = [number(row[key]) for key in ("mean", "iqm", "min", "max")]
            lines.append(f"  {name:>8} {cells[0]:>10} {cells[1]:>10} {interval:>22} {cells[2]:>10} {cells[3]:>10}")
            if row["not_finite"]:
                lines.append(f"  {'':>8} {row['not_finite']} returns are not finite and are left out")
        lines.append(f"  mean length {number(float(values['length'].mean()))} steps")
    resampled = "a seed's episodes, in the row 'all' the seeds' means" if len(steps) > 1 else "the episodes"
    return "\n".join([*lines, "", f"IQM: interquartile mean; its interval resamples {resampled}."])


def histogram_figure(returns: dict[str, Array], title: str) -> Figure:
    """How the returns (seeds, episodes) of each kind of action are spread, seeds pooled."""
    from haepo_jax.runner.plots import panel

    figure, axes = panel("return of an episode", "share of the episodes", title)
    known = {kind: values[np.isfinite(values)] for kind, values in returns.items()}
    pooled = np.concatenate(list(known.values()))
    if len(pooled):
        low, high = float(pooled.min()), float(pooled.max())
        edges = np.linspace(low, high, 41) if high > low else np.linspace(low - 0.5, high + 0.5, 4)
        for kind, values in known.items():
            weights = np.full(len(values), 1 / max(1, len(values)))
            label = f"{kind}, mean {number(float(values.mean()))}" if len(values) else kind
            axes.hist(values, edges.tolist(), weights=weights, alpha=0.55, label=label)
        axes.legend()
    return figure
