"""The train state, and the handling of non-finite updates."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from haepo_jax.counting import StepCount
from haepo_jax.normalization import RunningStatistics

Metrics = dict[str, jax.Array]

CAUSES = ("the loss", "the gradients", "the parameters after the step", "the optimiser's state")
"""The meaning of the bits of `TrainingStatus.cause`: bit i is set if the i-th was not finite."""


EPISODE_MEANS = ("episode_return", "episode_length")
"""Metrics that are means over the episodes that ended in an update; undefined, and set to 0, if "episodes" is 0."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainingStatus:
    """Non-finite updates and episodes of a run; all () int32.

    Attributes:
      skipped: number of discarded updates (`on_nan="skip"`).
      diverged_at: the update at which the run diverged (`on_nan="stop"`), or -1; the state is that before this update.
      cause: what was not finite in the last such update; see `CAUSES`.
      invalid_episodes: number of episodes with a non-finite observation or reward from the environment.
    """

    skipped: jax.Array
    diverged_at: jax.Array
    cause: jax.Array
    invalid_episodes: jax.Array

    @classmethod
    def new(cls) -> TrainingStatus:
        """The initial value."""
        return cls(jnp.int32(0), jnp.int32(-1), jnp.int32(0), jnp.int32(0))

    @property
    def diverged(self) -> jax.Array:
        return self.diverged_at >= 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The complete state of a training run between two updates.

    Attributes:
      params: parameters of the policy and, if there is one, of the value function.
      opt_state: optax state.
      reference: parameters of the frozen reference policy of a KL penalty or a preference, whose observations are
        normalised as they are now; None if it is always the behaviour policy of the batch.
      normalizer: running statistics of observations; None if they are not normalised.
      extra: further state of the algorithm, such as the running environments; see `SegmentState`.
      key: typed PRNG key of the run, constant; updates and environments fold their index into it.
      update: () int32, number of updates done.
      env_steps: number of environment steps taken.
      status: non-finite updates and episodes so far, and whether the run has diverged.
    """

    params: Any
    opt_state: Any
    reference: Any
    normalizer: RunningStatistics | None
    extra: Any
    key: jax.Array
    update: jax.Array
    env_steps: StepCount
    status: TrainingStatus


def check_single(state: TrainState) -> None:
    """Raises ValueError, with a one-line message, for a state with an axis of seeds, such as that of `haepo_jax.train`."""
    if shape := jnp.shape(state.update):
        raise ValueError(
            f"the state has an axis of seeds, {shape}: use jax.vmap, or the state of one seed (result.policy(seed).state)"
        )


class InitialPolicy(NamedTuple):
    """A trained policy to start from (see `haepo_jax.load`): parameters, and the observation normaliser or None."""

    params: Any
    normalizer: RunningStatistics | None


COUNTERS = frozenset({
    "update", "env_steps", "eval_return", "eval_return_greedy", "eval_length", "row", "seeds", "wall_seconds",
    "env_steps_per_second", "skipped_updates",
})  # fmt: skip
"""What a run adds to the metrics of an update."""
ADDED = frozenset({"grad_norm", "learning_rate", "episode_return", "episode_length", "episodes", "invalid_episodes"})
"""What `run_epochs` and `update_metrics` add to those of a loss."""


def check_metrics(metrics: Metrics, taken: frozenset[str] = COUNTERS) -> None:
    """Raises ValueError, with a one-line message, for metrics that an update cannot report; shapes will do as values."""
    if "loss" not in metrics:
        raise ValueError(f"the metrics of an update must include 'loss'; there are only {', '.join(metrics) or 'none'}")
    for name, value in metrics.items():
        if name in taken:
            raise ValueError(f"the metric {name!r} has the name of one that every run has: rename it")
        if shape := getattr(value, "shape", ()):
            raise ValueError(f"the metric {name!r} has the shape {shape}: it must be a scalar")


def keep_finite(state: TrainState, new: TrainState, frozen: TrainState, metrics: Metrics, on_nan: str) -> TrainState:
    """`new`, or the state before the update if the update was not finite.

    Args:
      state: the state before the update.
      new: the state after the update.
      frozen: the state to stop at if the update was not finite; see `Algorithm.discarded`.
      metrics: of the update: "loss", and optionally "grad_norm" and "invalid_episodes".
      on_nan: "skip" discards and counts the update, and the run continues with new data; "stop" freezes the state.
    """
    parts = (metrics["loss"], metrics.get("grad_norm", ()), new.params, new.opt_state)
    finite = jnp.stack([_all_finite(part) for part in parts])
    non_finite = ~jnp.all(finite)
    before = state.status
    invalid = before.invalid_episodes + jnp.asarray(metrics.get("invalid_episodes", 0), jnp.int32)
    bits = jnp.sum(jnp.where(finite, 0, 2 ** jnp.arange(len(CAUSES), dtype=jnp.int32)), dtype=jnp.int32)
    cause = jnp.where(non_finite, bits, before.cause)
    if on_nan == "skip":
        status = TrainingStatus(before.skipped + non_finite.astype(jnp.int32), before.diverged_at, cause, invalid)
        discarded = dataclasses.replace(state, extra=new.extra, update=new.update, env_steps=new.env_steps)
    else:
        ended = before.diverged
        non_finite |= ended
        diverged_at = jnp.where(ended | ~non_finite, before.diverged_at, state.update)
        status = TrainingStatus(before.skipped, diverged_at, jnp.where(ended, before.cause, cause), invalid)
        discarded = frozen
    kept = jax.tree.map(lambda x, old: jnp.where(non_finite, old, x), new, discarded)
    return dataclasses.replace(kept, status=status)


def _all_finite(tree: Any) -> jax.Array:
    # Concatenated: one reduction per leaf would take seconds to compile.
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.concatenate([jnp.ones(1, bool), *(jnp.isfinite(jnp.ravel(x)) for x in leaves)]))


def check_fits(start: InitialPolicy, expected: InitialPolicy) -> None:
    """Raises ValueError, with a one-line message, if `start` has another network or normaliser than `expected`."""
    if (start.normalizer is None) != (expected.normalizer is None):
        there = "unnormalised" if start.normalizer is None else "normalised"
        setting = f"normalize_observations={start.normalizer is not None}"
        raise ValueError(f"the initial policy was trained on {there} observations: set {setting}")
    named = [
        {jax.tree_util.keystr(path): jnp.shape(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (start, expected)
    ]
    for name in {**named[1], **named[0]}:
        there, here = (str(shapes.get(name, "missing")) for shapes in named)
        if there != here:
            raise ValueError(f"the initial policy has a different network: {name} is {there}, but must be {here}")
