"""Many episodes of a run's policies: playing them, their statistics, a table, a histogram and a JSON document."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from haepo_jax.algorithms.base import Algorithm
from haepo_jax.algorithms.running import EVALUATION_SEED
from haepo_jax.algorithms.state import TrainState
from haepo_jax.messages import number
from haepo_jax.runner.errors import disk_errors
from haepo_jax.runner.loading import load_run, seed_index
from haepo_jax.runner.plots import figure_png, histogram_figure
from haepo_jax.runner.run_dir import RunDir, json_text, write_atomically
from haepo_jax.runner.tables import aligned, interval_text
from haepo_jax.statistics import Array, describe_returns

CHUNK = 1000
"""Episodes played side by side for each seed."""

KINDS = {"sampled": False, "greedy": True}
"""Kinds of actions, and whether they are greedy."""


def evaluate(
    directory: RunDir, *, episodes: int, checkpoint: str, seed: int | None, episode_seed: int | None
) -> dict[str, Any]:
    """What `evaluation.json` holds: what was asked for, the statistics of `summarise`, and every return and length. Raises as
    `haepo_jax.load` does."""
    algorithm, run, states = load_run(directory, checkpoint)
    seeds = run.seed_numbers
    if seed is not None:
        index, seeds = seed_index(run.seed_numbers, seed), [seed]
        states = jax.tree.map(lambda x: x[index : index + 1], states)
    return {
        "env": run.env,
        "algo": run.algo.name,
        "checkpoint": checkpoint,
        "env_steps_per_seed": np.atleast_1d(states.env_steps.to_int()).tolist(),
        "seeds": seeds,
        "episodes": episodes,
        "episode_seed": episode_seed,
        **{
            kind: {
                "statistics": summarise(values["return"], seeds),
                "return": values["return"].tolist(),
                "length": values["length"].astype(int).tolist(),
            }
            for kind, values in play(algorithm, states, episodes, episode_seed).items()
        },
    }


def play(
    algorithm: Algorithm, states: TrainState, episodes: int, episode_seed: int | None
) -> dict[str, dict[str, Array]]:
    """Plays episodes with sampled and with greedy actions; every seed meets the same episodes. Without an `episode_seed` the
    first `CHUNK` are those of the evaluation at the end of a run.

    Returns:
      Under "sampled" and "greedy" the arrays "return" and "length", (seeds, episodes) each.
    """
    key = jax.random.key(EVALUATION_SEED if episode_seed is None else episode_seed)
    size = min(CHUNK, episodes)

    def both(state: TrainState, key: jax.Array) -> dict[str, Any]:
        return {
            kind: algorithm.evaluate(state, episodes=size, greedy=greedy, key=key) for kind, greedy in KINDS.items()
        }

    chunk = jax.jit(jax.vmap(both, in_axes=(0, None)))
    parts = [jax.device_get(chunk(states, chunk_key(key, index))) for index in range(-(-episodes // size))]
    # The last chunk may be too large: an episode does not depend on how many others are played beside it.
    return dict(jax.tree.map(lambda *x: np.concatenate(x, axis=1)[:, :episodes].astype(np.float64), *parts))


def chunk_key(key: jax.Array, chunk: int) -> jax.Array:
    """The key of the episodes from `chunk * CHUNK` on."""
    return jax.random.fold_in(key, chunk) if chunk else key


def summarise(returns: Array, seeds: list[int]) -> list[dict[str, Any]]:
    """Statistics of returns (seeds, episodes), one row per seed, whose interval resamples episodes; and of several seeds a
    last row on their means, whose interval resamples seeds and whose `min` and `max` are over episodes."""
    rows = [{"seed": seed, **describe_returns(values)} for seed, values in zip(seeds, returns, strict=True)]
    if len(seeds) > 1:
        known = returns[np.isfinite(returns)]
        extremes = {"min": float(known.min()), "max": float(known.max())} if len(known) else {}
        rows.append({"seed": None, **describe_returns(returns.mean(axis=1)), **extremes})
    return rows


def write(directory: RunDir, document: dict[str, Any]) -> None:
    """Writes evaluation.json and evaluation.png; raises RunError where the disk is full."""
    several = " per seed" if len(document["seeds"]) > 1 else ""
    title = f"{document['algo']} on {document['env']}, {document['episodes']:,} episodes{several}"
    with disk_errors(directory.path, "evaluation"):
        write_atomically(directory.path / "evaluation.json", json_text(document) + "\n")
        figure = histogram_figure({kind: document[kind]["return"] for kind in KINDS}, title)
        write_atomically(directory.path / "evaluation.png", figure_png(figure))


def report(document: dict[str, Any]) -> str:
    """The tables of statistics as text."""
    steps = document["env_steps_per_seed"]
    each = " per seed" if len(steps) > 1 else ""
    lines = [
        f"{document['algo']} on {document['env']}, {document['checkpoint']} checkpoint, "
        f"after {sum(steps) // len(steps):,} steps{each}"
    ]
    for kind in KINDS:
        rows = [
            {
                "seed": "all" if row["seed"] is None else str(row["seed"]),
                "mean": number(row["mean"]),
                "IQM": number(row["iqm"]),
                "95% interval": interval_text(row["iqm_interval"]),
                "min": number(row["min"]),
                "max": number(row["max"]),
                "not finite": str(row["not_finite"]),
            }
            for row in document[kind]["statistics"]
        ]
        lines += ["", f"{kind} actions, {document['episodes']:,} episodes{each}", aligned(rows)]
        lines.append(f"mean length {number(float(np.mean(document[kind]['length'])))} steps")
    lines += ["", "IQM: interquartile mean over episodes; its 95% interval resamples them. min, max: over episodes."]
    if each:
        lines.append("all: mean, IQM and interval over the means of the seeds, which the interval resamples.")
    return "\n".join(lines)
