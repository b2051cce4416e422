"""V-trace: advantages and value targets from data of another policy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from haepo_jax.losses._checks import Checks
from haepo_jax.losses.numerics import bounded_exp, decayed_sum, select


def vtrace(
    log_ratio: ArrayLike,
    rewards: ArrayLike,
    values: ArrayLike,
    bootstrap_values: ArrayLike,
    terminated: ArrayLike,
    truncated: ArrayLike,
    *,
    discount: ArrayLike,
    vtrace_lambda: ArrayLike = 1.0,
    clip_rho: ArrayLike = 1.0,
    clip_c: ArrayLike = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """V-trace: off-policy advantages and value targets of a segment (Espeholt 2018, arXiv 1802.01561, eq. 1, remark 2).

        rho[t] = min(clip_rho, ratio[t])      c[t] = lambda min(clip_c, ratio[t])      ratio[t] = exp(log_ratio[t])
        delta[t] = rho[t] (r[t] + gamma (1 - terminated[t]) bootstrap[t] - v[t])
        target[t] - v[t] = delta[t] + gamma c[t] (1 - terminated[t] or truncated[t]) (target[t+1] - v[t+1])
        A[t] = r[t] + gamma (1 - terminated[t]) (bootstrap[t] + lambda (1 - truncated[t]) (target[t+1] - v[t+1])) - v[t]

    The advantage does not include the ratio of its own step, which the losses here apply themselves; IMPALA's actor
    gradient is rho[t] A[t] times that of the log-probability. If the two policies are equal, the results are those of
    ``generalized_advantage_estimation``.

    Args:
      log_ratio: (T, ...), log-probability (nats) of each action under the target policy minus that under the behaviour
        policy; time first; floating point.
      rewards, values, bootstrap_values, terminated, truncated: (T, ...), as for ``generalized_advantage_estimation``.
      discount: scalar gamma in [0, 1].
      vtrace_lambda: scalar lambda in [0, 1].
      clip_rho: scalar >= 0, upper bound of rho; determines the policy whose value is the fixed point.
      clip_c: scalar >= 0, upper bound of c; determines how far corrections propagate back.

    Returns:
      Advantages and value targets, each (T, ...), at least float32, with gradients stopped.

    Raises:
      TypeError: ``log_ratio`` or ``values`` is not floating point, or another array is not numeric.
      ValueError: shapes differ, or a number is out of range.

    Examples:
      >>> import jax.numpy as jnp
      >>> from haepo_jax.losses import vtrace
      >>> advantages, targets = vtrace(
      ...     log_ratio=jnp.log(jnp.array([0.5, 2.0])),
      ...     rewards=jnp.array([1.0, 1.0]),
      ...     values=jnp.array([0.0, 0.0]),
      ...     bootstrap_values=jnp.array([0.0, 0.0]),
      ...     terminated=jnp.array([False, True]),
      ...     truncated=jnp.array([False, False]),
      ...     discount=1.0,
      ... )
      >>> print(targets)  # 0.5 * 1 + 0.5 * 1; then 1, as the ratio 2 is clipped to 1
      [1. 1.]
      >>> print(advantages)
      [2. 1.]
    """
    check = Checks("vtrace")
    baseline = check.floats("values", values, min_ndim=1)
    like = "the shape of values"
    ratio = bounded_exp(check.floats("log_ratio", log_ratio, baseline.shape, like=like))
    reward = check.floats("rewards", rewards, baseline.shape, like=like, integers=baseline.dtype)
    following = check.floats("bootstrap_values", bootstrap_values, baseline.shape, like=like, integers=baseline.dtype)
    ended = check.mask("terminated", terminated, baseline.shape, like=like)
    cut = ended | check.mask("truncated", truncated, baseline.shape, like=like)
    gamma = check.number("discount", discount, low=0, high=1)
    lam = check.number("vtrace_lambda", vtrace_lambda, low=0, high=1)
    rho = jnp.minimum(ratio, check.number("clip_rho", clip_rho, low=0))
    kept = gamma * lam * jnp.minimum(ratio, check.number("clip_c", clip_c, low=0))

    errors = reward + gamma * select(~ended, following) - baseline

    corrections = decayed_sum(rho * errors, jnp.where(cut, 0, kept), reverse=True)
    after = select(~cut, jnp.concatenate([corrections[1:], jnp.zeros_like(corrections[:1])]))
    return jax.lax.stop_gradient((errors + gamma * lam * after, baseline + corrections))
