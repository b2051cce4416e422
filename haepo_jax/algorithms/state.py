"""The train state, and what happens to an update that is not finite."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from haepo_jax.counting import StepCount
from haepo_jax.normalization import RunningStatistics

Metrics = dict[str, jax.Array]

CAUSES = ("the loss", "the gradients", "the parameters after the step", "the optimiser's state")
"""What `Health.cause` counts: bit i is set where the i-th was not finite."""


EPISODE_MEANS = ("episode_return", "episode_length")
"""Metrics that are means over the episodes that ended in an update: 0, and not known, where the metric "episodes" is 0."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Health:
    """Counts of updates and episodes that were not finite; all () int32.

    Attributes:
      skipped: how many updates were discarded (`on_nan="skip"`).
      diverged_at: the update that ended the run (`on_nan="stop"`), or -1; the state stays as it was before that update.
      cause: of the last one; see `CAUSES`.
      invalid_episodes: how many the environment spoilt with an observation or reward that was not finite.
    """

    skipped: jax.Array
    diverged_at: jax.Array
    cause: jax.Array
    invalid_episodes: jax.Array

    @classmethod
    def new(cls) -> Health:
        """Of a run that has not begun."""
        return cls(jnp.int32(0), jnp.int32(-1), jnp.int32(0), jnp.int32(0))

    @property
    def diverged(self) -> jax.Array:
        return self.diverged_at >= 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that one update needs from the one before.

    Attributes:
      params: of the policy being optimised, and of the value function where there is one.
      opt_state: of optax.
      reference: parameters of the frozen policy that a KL or a preference is measured against; None where it is always
        the policy that collected the batch.
      normalizer: running statistics of observations, or None where they are not normalised.
      extra: what an algorithm keeps besides, such as environments in mid-episode; see `SegmentState`.
      key: the run's typed PRNG key, never changed; randomness is folded in from it by update and environment index.
      update: () int32, updates done.
      env_steps: valid environment steps done.
      health: whether an update was not finite.
    """

    params: Any
    opt_state: Any
    reference: Any
    normalizer: RunningStatistics | None
    extra: Any
    key: jax.Array
    update: jax.Array
    env_steps: StepCount
    health: Health


class Start(NamedTuple):
    """A trained policy that training starts from: its parameters, and the observation normaliser it was trained with or
    None; see `haepo_jax.load`."""

    params: Any
    normalizer: RunningStatistics | None


def keep_finite(state: TrainState, new: TrainState, metrics: Metrics, on_nan: str) -> TrainState:
    """`new`, or where the update was not finite the state before it.

    Args:
      state: before the update.
      new: after it.
      metrics: of the update: "loss", and "grad_norm" and "invalid_episodes" where it has them.
      on_nan: "skip" discards the update, counts it and lets the run continue with new experience; "stop" freezes the
        state.
    """
    parts = (metrics["loss"], metrics.get("grad_norm", ()), new.params, new.opt_state)
    finite = jnp.stack([_all_finite(part) for part in parts])
    sick = ~jnp.all(finite)
    before = state.health
    invalid = before.invalid_episodes + jnp.asarray(metrics.get("invalid_episodes", 0), jnp.int32)
    bits = jnp.sum(jnp.where(finite, 0, 2 ** jnp.arange(len(CAUSES), dtype=jnp.int32)), dtype=jnp.int32)
    cause = jnp.where(sick, bits, before.cause)
    if on_nan == "skip":
        health = Health(before.skipped + sick.astype(jnp.int32), before.diverged_at, cause, invalid)
        discarded = dataclasses.replace(state, extra=new.extra, update=new.update, env_steps=new.env_steps)
    else:
        frozen = before.diverged
        sick |= frozen
        diverged_at = jnp.where(frozen | ~sick, before.diverged_at, state.update)
        health = Health(before.skipped, diverged_at, jnp.where(frozen, before.cause, cause), invalid)
        discarded = state
    kept = jax.tree.map(lambda x, old: jnp.where(sick, old, x), new, discarded)
    return dataclasses.replace(kept, health=health)


def _all_finite(tree: Any) -> jax.Array:
    # As one vector: a reduction for each leaf takes seconds to compile.
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.concatenate([jnp.ones(1, bool), *(jnp.isfinite(jnp.ravel(x)) for x in leaves)]))


def check_fits(start: Start, own: Start) -> None:
    """Raises ValueError, in one line, where one policy cannot start from another's parameters."""
    if (start.normalizer is None) != (own.normalizer is None):
        there, here = ("normalised", "are not") if own.normalizer is None else ("not normalised", "are")
        raise ValueError(f"the policy to start from saw observations that were {there}, and these {here}")
    named = [
        {jax.tree_util.keystr(path): jnp.shape(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (start, own)
    ]
    for name in {**named[1], **named[0]}:
        there, here = (str(shapes.get(name, "missing")) for shapes in named)
        if there != here:
            raise ValueError(f"the policy to start from has another network: {name} is {there} there and {here} here")
