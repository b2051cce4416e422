"""The numerics of a sweep: pure functions on train states stacked along a first axis of lanes.

A lane is one seed of one configuration. Its randomness comes from its own key and its end from its own step count, so a
lane gives the same result wherever it stands in the stack and however its training is cut into calls.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from haepo_jax.algorithms.base import Algorithm
from haepo_jax.algorithms.state import EPISODE_MEANS, TrainState
from haepo_jax.counting import StepCount
from haepo_jax.unbatched import any_in_batch, hold_finished


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lane:
    """One seed of one configuration in training; stacked, every leaf has the lanes as its first axis.

    Attributes:
      state: the train state.
      curve_sum, curve_count: (points,) float32, the sum and number of the training returns of the updates that ended in
        each of `points` equal parts of the run.
      episode_length: () float32, mean of the last update in which an episode ended; 0 before the first.
      episode_return: () float32, likewise.
    """

    state: TrainState
    curve_sum: jax.Array
    curve_count: jax.Array
    episode_length: jax.Array
    episode_return: jax.Array


def start(algorithm: Algorithm, seed: jax.Array, points: int) -> Lane:
    """A lane before its first update, with a learning curve of `points`. Its key is that of `train` with that seed."""
    state = algorithm.init(jax.random.key(seed))
    return Lane(state, jnp.zeros(points), jnp.zeros(points), jnp.zeros(()), jnp.zeros(()))


def unfinished(lane: Lane, until: StepCount) -> jax.Array:
    """Whether a lane trains on: () bool."""
    return (lane.state.env_steps < until) & ~lane.state.status.diverged


def advance(algorithm: Algorithm, lane: Lane, until: StepCount, updates: jax.Array) -> Lane:
    """Trains until `until` valid steps are done or `updates` () int32 updates made, whichever comes first.

    `Algorithm.advance` with a learning curve and a limit on updates. vmapped, the lanes that have finished stay as they
    are, and the loop ends with the last one.
    """

    def step(loop: tuple[jax.Array, Lane]) -> tuple[jax.Array, Lane]:
        made, lane = loop
        state, metrics = algorithm.train_step(lane.state)
        return made + 1, hold_finished(unfinished(lane, until), _record(algorithm, lane, state, metrics), lane)

    def more(loop: tuple[jax.Array, Lane]) -> jax.Array:
        made, lane = loop
        return (made < updates) & any_in_batch(unfinished(lane, until))

    return jax.lax.while_loop(more, step, (jnp.int32(0), lane))[1]


def _record(algorithm: Algorithm, lane: Lane, state: TrainState, metrics: dict[str, jax.Array]) -> Lane:
    points = lane.curve_sum.shape[0]
    part = jnp.minimum(state.env_steps.fraction_of(algorithm.total_steps) * points, points - 1).astype(jnp.int32)
    # A custom algorithm may have neither; a mean over no episode is 0.
    value, length = (metrics.get(name, jnp.float32(jnp.nan)) for name in EPISODE_MEANS)
    ended = metrics.get("episodes", 1) > 0
    known = jnp.isfinite(value) & ended & ~state.status.diverged
    return Lane(
        state=state,
        curve_sum=lane.curve_sum.at[part].add(jnp.where(known, value, 0.0)),
        curve_count=lane.curve_count.at[part].add(known.astype(jnp.float32)),
        episode_length=jnp.where(jnp.isfinite(length) & ended, length, lane.episode_length),
        episode_return=jnp.where(known, value, lane.episode_return),
    )


def evaluate(algorithm: Algorithm, lane: Lane, episodes: int) -> jax.Array:
    """The mean return of `episodes` episodes with sampled actions: () float32."""
    return jnp.mean(algorithm.evaluate(lane.state, episodes=episodes)["return"])


# --- The stack --------------------------------------------------------------------------------------------------------


def take(stacked: Any, indices: jax.Array) -> Any:
    """The lanes of these indices (M,), in that order; an index may come twice."""
    return jax.tree.map(lambda x: x[indices], stacked)


def put(stacked: Any, indices: jax.Array, lanes: Any) -> Any:
    """The stack with `lanes` written at `indices` (M,); an index past the end is left out."""
    return jax.tree.map(lambda x, new: x.at[indices].set(new, mode="drop"), stacked, lanes)


# --- Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943) -----------------------------------------------


def rung_shares(eta: int, rungs: int) -> list[float]:
    """The shares of a run at which successive halving decides, and its end: eta^-rungs, ..., 1/eta, 1."""
    return [float(eta) ** (rung - rungs) for rung in range(rungs + 1)]


def survivors(values: npt.ArrayLike, eta: int) -> npt.NDArray[np.int64]:
    """The indices, ascending, of the best 1 in `eta` of `values` (N,), rounded up. On the host: N changes every time.

    NaN stands for a trial that failed, and never survives; of equal values the first does.
    """
    known = np.asarray(values, np.float64)
    best_first = np.argsort(-np.where(np.isnan(known), -np.inf, known), kind="stable")[: -(-len(known) // eta)]
    return np.sort(best_first[~np.isnan(known[best_first])])


# --- Population-based training (Jaderberg et al. 2017, arXiv 1711.09846) ----------------------------------------------


def exploit(key: jax.Array, values: jax.Array, fraction: float = 0.25) -> jax.Array:
    """Whose state each member continues from: (N,) indices.

    The worst `fraction` (truncation selection), and every member that failed, whose value is NaN, copy members of the
    best `fraction`, drawn uniformly; all others keep their own. Where all failed, all keep their own.
    """
    size = values.shape[0]
    count, failed = int(size * fraction), jnp.isnan(values)
    best_first = jnp.argsort(jnp.where(failed, jnp.inf, -values), stable=True)
    best = jnp.clip(size - jnp.sum(failed), 1, max(count, 1))
    chosen = best_first[jax.random.randint(key, (size,), 0, best)]
    replaced = (jnp.argsort(best_first) >= size - count) | failed
    return jnp.where(replaced & ~jnp.all(failed), chosen, jnp.arange(size))


def explore(
    key: jax.Array, values: jax.Array, low: float, high: float, factors: tuple[float, float] = (0.8, 1.25)
) -> jax.Array:
    """Numbers (N,), each multiplied by one of `factors`, equally likely, and kept within [low, high]."""
    factor = jnp.where(jax.random.bernoulli(key, shape=values.shape), factors[1], factors[0])
    return jnp.clip(values * factor, low, high)


def inherit(lanes: Lane, source: jax.Array) -> Lane:
    """Stacked lanes, each of which continues from the state of lane `source` (L,): parameters, optimiser and all.

    Keys stay: two lanes that continued from one state with one key would collect the same episodes. So do step counts
    and learning curves, which are each lane's own.
    """
    copied = take(lanes.state, source)
    own = lanes.state
    state = dataclasses.replace(copied, key=own.key, update=own.update, env_steps=own.env_steps)
    lengths, returns = lanes.episode_length[source], lanes.episode_return[source]
    return dataclasses.replace(lanes, state=state, episode_length=lengths, episode_return=returns)
