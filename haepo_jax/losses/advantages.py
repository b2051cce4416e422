"""Generalised advantage estimation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from haepo_jax.losses._checks import Checks
from haepo_jax.losses.numerics import decayed_sum, select


def generalized_advantage_estimation(
    rewards: ArrayLike,
    values: ArrayLike,
    bootstrap_values: ArrayLike,
    terminated: ArrayLike,
    truncated: ArrayLike,
    *,
    discount: ArrayLike,
    gae_lambda: ArrayLike,
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation: advantages and value targets of a segment.

    See Schulman 2016, arXiv 1506.02438, eq. 16, and eq. 11 and 12 of PPO (arXiv 1707.06347):

        delta[t] = r[t] + gamma (1 - terminated[t]) bootstrap[t] - v[t]
        A[t] = delta[t] + gamma lambda (1 - terminated[t] or truncated[t]) A[t+1]

    Nothing follows a terminated step; a truncated step bootstraps from the value of the final observation.

    Args:
      rewards: (T, ...), reward of each step, time first; integers are cast.
      values: (T, ...), value of each step's observation; floating point.
      bootstrap_values: (T, ...), value of the observation after each step, before any reset: the next step's value, or
        that of the final observation at the end of an episode. Ignored where ``terminated``.
      terminated: (T, ...), bool or 0/1: the episode terminated at this step.
      truncated: (T, ...), bool or 0/1: the episode was truncated after this step.
      discount: scalar gamma in [0, 1].
      gae_lambda: scalar lambda in [0, 1].

    Returns:
      Advantages and value targets (advantage + value), each (T, ...), at least float32, with gradients stopped.

    Raises:
      TypeError: ``values`` is not floating point, or another array is not numeric.
      ValueError: shapes differ, or a number is out of range.

    Examples:
      >>> import jax.numpy as jnp
      >>> from haepo_jax.losses import generalized_advantage_estimation
      >>> advantages, targets = generalized_advantage_estimation(
      ...     rewards=jnp.array([1.0, 1.0, 1.0]),
      ...     values=jnp.array([0.0, 0.0, 0.0]),
      ...     bootstrap_values=jnp.array([0.0, 9.0, 10.0]),
      ...     terminated=jnp.array([False, True, False]),
      ...     truncated=jnp.array([False, False, True]),
      ...     discount=0.5,
      ...     gae_lambda=1.0,
      ... )
      >>> print(advantages)  # 1 + 0.5 * 1; then 1, as nothing follows the end; then 1 + 0.5 * 10
      [1.5 1.  6. ]
    """
    check = Checks("generalized_advantage_estimation")
    baseline = check.floats("values", values, min_ndim=1)
    like = "the shape of values"
    reward = check.floats("rewards", rewards, baseline.shape, like=like, integers=baseline.dtype)
    following = check.floats("bootstrap_values", bootstrap_values, baseline.shape, like=like, integers=baseline.dtype)
    ended = check.mask("terminated", terminated, baseline.shape, like=like)
    cut = ended | check.mask("truncated", truncated, baseline.shape, like=like)
    gamma = check.number("discount", discount, low=0, high=1)
    lam = check.number("gae_lambda", gae_lambda, low=0, high=1)

    deltas = reward + gamma * select(~ended, following) - baseline

    advantages = decayed_sum(deltas, jnp.where(cut, 0, gamma * lam), reverse=True)
    return jax.lax.stop_gradient((advantages, advantages + baseline))
