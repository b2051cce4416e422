"""The learning phase of an update: minibatches and gradient steps, the next train state and the metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import chex
import jax
import jax.numpy as jnp

from haepo_jax.algorithms.optimizers import global_norm
from haepo_jax.algorithms.state import ADDED, COUNTERS, Metrics, TrainState, check_metrics
from haepo_jax.rollout import Trajectory
from haepo_jax.unbatched import any_in_batch

if TYPE_CHECKING:
    from haepo_jax.algorithms.base import Algorithm


def epoch_orders(key: jax.Array, num_epochs: int, size: int) -> jax.Array:
    """A random permutation of `size` indices for each epoch, (num_epochs, size) int32.

    Sorts random words whose low bits are the indices. `jax.random.permutation` sorts pairs of word and index, twice, to
    rule out any effect of ties; on a CPU that takes 13 times as long, a third of PPO's update on CartPole. Here a tie
    keeps two indices in order. Ties are rare while the random bits (20 for 4096 indices) outnumber those of the index;
    larger batches are shuffled twice.
    """
    index_bits = (size - 1).bit_length()

    def shuffled(key: jax.Array) -> jax.Array:
        words = jax.random.bits(key, (num_epochs, size)) >> index_bits << index_bits
        words = jnp.sort(words | jnp.arange(size, dtype=words.dtype)[None], axis=-1)
        return (words & (2**index_bits - 1)).astype(jnp.int32)

    if index_bits <= 15:
        return shuffled(key)
    first, second = jax.random.split(key)
    return jnp.take_along_axis(shuffled(first), shuffled(second), axis=-1)


ONCE = ("ess", "max_weight", "alignment")
"""Metrics that are computed once per update, on its last minibatch with the final parameters, instead of averaged over
all gradient steps: no gradient needs them, and each costs several kernels."""


def run_epochs(
    algorithm: Algorithm,
    state: TrainState,
    gradients_of: Callable[[Any, jax.Array], tuple[Any, Metrics]],
    orders: jax.Array,
    stop_above_kl: Any = None,
) -> tuple[Any, Any, Metrics]:
    """Runs the epochs of one update, with a gradient step per minibatch.

    Args:
      algorithm: the algorithm, `scheduled`.
      state: the train state before the update.
      gradients_of: (params, indices of a minibatch) -> gradients and metrics.
      orders: (num_epochs, size), the order of the batch in each epoch, split into `num_minibatches`.
      stop_above_kl: once the metric "kl" of a minibatch exceeds this, the later ones are skipped and repeat its
        metrics; None: no limit.

    Returns:
      Parameters, optimiser state, and metrics averaged over the minibatches, including "grad_norm"; but see `ONCE`.
    """
    chex.assert_shape(orders, (algorithm.num_epochs, None))
    gradients_of = jax.jit(gradients_of)  # traced once
    minibatches = orders.reshape(algorithm.num_epochs * algorithm.num_minibatches, -1)
    check_metrics(jax.eval_shape(gradients_of, state.params, minibatches[0])[1], COUNTERS | ADDED)

    def step(learner: tuple[Any, Any], indices: jax.Array) -> tuple[tuple[Any, Any], Metrics]:
        params, opt_state = learner
        gradients, metrics = gradients_of(params, indices)
        metrics = {name: value for name, value in metrics.items() if name not in ONCE}
        learner = algorithm.apply_gradients(params, opt_state, gradients)
        return learner, {**metrics, "grad_norm": global_norm(gradients)}

    def step_below_kl(
        loop: tuple[tuple[Any, Any], Metrics], indices: jax.Array
    ) -> tuple[tuple[tuple[Any, Any], Metrics], Metrics]:
        learner, previous = loop
        below = previous["kl"] <= jnp.asarray(stop_above_kl, previous["kl"].dtype)
        stepped = lambda: jax.tree.map(lambda x, old: jnp.where(below, x, old), step(learner, indices), loop)  # noqa: E731
        loop = jax.lax.cond(any_in_batch(below), stepped, lambda: loop)
        return loop, loop[1]

    learner = state.params, state.opt_state
    shapes = jax.eval_shape(step, learner, minibatches[0])[1]
    if stop_above_kl is None:
        # Pack the metrics of a step into one array: an accelerator would launch a kernel to store each of them.
        names = sorted(shapes)

        def packed_step(learner: tuple[Any, Any], indices: jax.Array) -> tuple[tuple[Any, Any], jax.Array]:
            learner, metrics = step(learner, indices)
            return learner, jnp.stack([metrics[name] for name in names])

        learner, rows = jax.lax.scan(packed_step, learner, minibatches)
        metrics = {name: rows[:, i] for i, name in enumerate(names)}
    else:
        nothing = jax.tree.map(jnp.zeros_like, shapes)
        (learner, _), metrics = jax.lax.scan(step_below_kl, (learner, nothing), minibatches)
    last = gradients_of(learner[0], minibatches[-1])[1]
    return *learner, jax.tree.map(jnp.mean, metrics) | {name: last[name] for name in ONCE if name in last}


def next_state(
    state: TrainState, params: Any, opt_state: Any, steps: Trajectory, num_steps: jax.Array, **changes: Any
) -> TrainState:
    """The train state after an update that collected `num_steps` () int32 steps, with further `changes`."""
    normalizer = state.normalizer
    if normalizer is not None:
        normalizer = normalizer.update(steps.observation, steps.mask)
    return dataclasses.replace(
        state,
        params=params,
        opt_state=opt_state,
        normalizer=normalizer,
        update=state.update + 1,
        env_steps=state.env_steps + num_steps,
        **changes,
    )


def update_metrics(
    algorithm: Algorithm,
    learning: Metrics,
    returns: jax.Array,
    lengths: jax.Array,
    ended: jax.Array,
    invalid: jax.Array,
) -> Metrics:
    """The metrics of an update: those of the learning phase, and the mean return and length of finished episodes.

    Args:
      algorithm: the algorithm, `scheduled`.
      learning: metrics from `run_epochs`.
      returns, lengths: of episodes, any shape; used where `ended`, of the same shape.
      ended: bool; if no episode ended, the means and "episodes" are 0.
      invalid: bool, any shape: non-finite episodes or steps.
    """
    chex.assert_equal_shape([returns, lengths, ended])
    episodes = jnp.sum(ended, dtype=jnp.float32)
    mean = lambda x: jnp.sum(x.astype(jnp.float32), where=ended) / jnp.maximum(episodes, 1)  # noqa: E731
    return {
        **learning,
        "learning_rate": jnp.asarray(algorithm.learning_rate, jnp.float32),
        "episode_return": mean(returns),
        "episode_length": mean(lengths),
        "episodes": episodes,
        "invalid_episodes": jnp.sum(invalid, dtype=jnp.float32),
    }
