"""Cumulative log-likelihoods, HAEPO's Plackett-Luce weights, and statistics of these weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from haepo_jax.losses._checks import Checks
from haepo_jax.losses.numerics import divide, lowest, rank_correlation, select


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Auto:
    """The temperature "auto" as a pytree without leaves, so that it can replace a number in a pytree."""


AUTO = Auto()

REGULARIZERS = ("policy", "weights")
"""The distributions whose entropy or KL a loss can use: the policy's, or the weights."""

Temperature = ArrayLike | Literal["auto"] | Auto


WeightFunction = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(scores, mask, temperature) -> weights, a replacement for the softmax.

Scores (..., K), a bool mask (..., K) and an array that broadcasts to (..., 1) -> (..., K): differentiable in the
scores, non-negative, 0 where masked, and summing to 1 over the valid members."""


def trajectory_log_likelihood(log_probs: ArrayLike, mask: ArrayLike) -> jax.Array:
    """Cumulative log-likelihood of each trajectory, L = sum_t m[t] l[t] (HAEPO, arXiv 2508.18884).

    Args:
      log_probs: (T, ..., K), log-probability of each action; time first; floating point. Masked entries may be NaN.
      mask: (T, ..., K), bool or 0/1: valid steps, up to and including a trajectory's last.

    Returns:
      (..., K), summed in at least float32.

    Raises:
      TypeError: ``log_probs`` is not floating point, or ``mask`` is not numeric.
      ValueError: the shapes differ.

    Examples:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from haepo_jax.losses import trajectory_log_likelihood
      >>> log_probs = jnp.log(jnp.array([[0.5, 0.5], [0.5, 0.9]]))  # two steps of two trajectories
      >>> mask = jnp.array([[True, True], [True, False]])  # the second one ended after one step
      >>> print(np.asarray(trajectory_log_likelihood(log_probs, mask)).round(3))
      [-1.386 -0.693]
    """
    check = Checks("trajectory_log_likelihood")
    steps = check.floats("log_probs", log_probs, min_ndim=1)
    valid = check.mask("mask", mask, steps.shape, like="the shape of log_probs")
    return jnp.sum(select(valid, steps), axis=0)


def plackett_luce_weights(
    scores: ArrayLike, *, temperature: Temperature = 1.0, mask: ArrayLike | None = None
) -> jax.Array:
    """Weights w = softmax(s / tau) over the valid members of each group (HAEPO, arXiv 2508.18884).

    ``temperature="auto"`` sets tau = max(1, (max s - min s) / 2) over the valid members. The weights then differ by a
    factor of at most e^2, and by Kantorovich's inequality the effective sample size (sum w)^2 / sum w^2 is at least 4
    e^2 / (1 + e^2)^2 = 42 % of the valid members, however long the trajectories are. Scores that span less than 2 nats
    keep tau = 1.

    Args:
      scores: (..., K), one score per trajectory; leading axes are groups; floating point.
      temperature: tau > 0: a scalar, an array that broadcasts to the leading axes, or "auto" (or ``AUTO``); its
        gradient is stopped.
      mask: (..., K), bool or 0/1: which members are valid; default all.

    Returns:
      (..., K), at least float32: the valid weights of a group sum to 1; masked weights, and all weights of a group
      without a valid member, are exactly 0.

    Raises:
      TypeError: ``scores`` is not floating point, or another argument is not numeric.
      ValueError: shapes do not match, or ``temperature`` is neither above 0 nor "auto".

    Examples:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from haepo_jax.losses import plackett_luce_weights
      >>> scores = jnp.array([-1000.0, -1001.0, jnp.nan])
      >>> print(np.asarray(plackett_luce_weights(scores, mask=jnp.array([1, 1, 0]))).round(3))
      [0.731 0.269 0.   ]
      >>> print(np.asarray(plackett_luce_weights(jnp.array([-1000.0, 0.0]), temperature="auto")).round(3))
      [0.119 0.881]
    """
    check = Checks("plackett_luce_weights")
    logits = check.floats("scores", scores, min_ndim=1)
    valid = check.mask("mask", mask, logits.shape, like="the shape of scores")
    tau = resolve_temperature(check, temperature, logits, valid, logits.shape[:-1])
    return log_softmax(logits, valid, tau)[0]


def resolve_temperature(
    check: Checks, temperature: Temperature, scores: jax.Array, valid: jax.Array, groups: tuple[int, ...]
) -> jax.Array:
    """The temperature, with its gradient stopped, as an array that broadcasts against ``scores``.

    "auto" is computed from the scores; numbers are checked and must broadcast to ``groups``.
    """
    if isinstance(temperature, str):
        check.option("temperature", temperature, ("auto",))
        temperature = AUTO
    if isinstance(temperature, Auto):
        scores = jax.lax.stop_gradient(scores)
        finite = valid & jnp.isfinite(scores)
        spread = -lowest(-scores, finite) - lowest(scores, finite)
        return jnp.maximum(spread / 2, 1)
    tau = check.number("temperature", temperature, low=0, open_low=True, shape=groups)
    return jnp.expand_dims(tau, (*range(scores.ndim - 1 - tau.ndim), -1))


def log_softmax(scores: jax.Array, valid: jax.Array, tau: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Softmax of scores / tau over the valid members, and its logarithm; (..., K) each, 0 where masked.

    The logarithm stays finite where a weight underflows, and so do entropies and divergences.
    """
    chex.assert_equal_shape([scores, valid])
    top = -lowest(-jax.lax.stop_gradient(scores), valid)
    # The maximum is subtracted before the division: the difference of two scores near -1e6 then survives any
    # temperature.
    scaled = select(valid, jnp.where(valid, scores, top) - top) / tau
    exponentials = select(valid, jnp.exp(scaled))
    total = jnp.sum(exponentials, axis=-1, keepdims=True)
    total = jnp.where(total == 0, 1, total)  # nothing is valid
    return exponentials / total, select(valid, scaled - jnp.log(total))


def weigh(
    function: WeightFunction | None, scores: jax.Array, valid: jax.Array, tau: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Weights and their logarithms, (..., K) each, from ``function``, or from the softmax if it is ``None``."""
    if function is None:
        return log_softmax(scores, valid, tau)
    weights = function(scores, valid, tau)
    chex.assert_equal_shape([weights, scores], custom_message="weight_function")
    chex.assert_type(weights, float)
    weights = select(valid, weights)
    return weights, jnp.where(weights > 0, jnp.log(jnp.where(weights > 0, weights, 1)), 0)


def relative_entropy(weights: jax.Array, log_weights: jax.Array, valid: jax.Array) -> jax.Array:
    """Entropy of the weights as a fraction of its maximum, log K; (..., K) -> (...)."""
    chex.assert_equal_shape([weights, log_weights, valid])
    most = jnp.log(jnp.maximum(jnp.sum(valid, axis=-1, dtype=weights.dtype), 1))
    return divide(-jnp.sum(weights * log_weights, axis=-1), most)


def divergence(reference_weights: jax.Array, log_reference: jax.Array, log_weights: jax.Array) -> jax.Array:
    """KL(w_ref || w), (..., K) -> (...)."""
    chex.assert_equal_shape([reference_weights, log_reference, log_weights])
    return jnp.sum(reference_weights * (log_reference - log_weights), axis=-1)


def effective_fraction(weights: jax.Array, valid: jax.Array) -> jax.Array:
    """Effective sample size as a fraction of K, (..., K) -> (...), for weights that sum to 1."""
    chex.assert_equal_shape([weights, valid])
    squares = jnp.sum(valid, axis=-1, dtype=weights.dtype) * jnp.sum(weights**2, axis=-1)
    return divide(jnp.ones_like(squares), squares)


def alignment(scores: jax.Array, returns: jax.Array, valid: jax.Array) -> jax.Array:
    """Rank correlation of weight and return, computed from the scores, whose order survives underflowing weights."""
    return rank_correlation(jax.lax.stop_gradient(scores), returns, valid)


def total(
    check: Checks,
    terms: dict[str, jax.Array],
    spread: dict[str, jax.Array],
    entropy_coef: ArrayLike,
    kl_coef: ArrayLike,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """-objective - entropy_coef * entropy + kl_coef * kl of ``terms``, and all metrics with gradients stopped."""
    bonus = check.number("entropy_coef", entropy_coef) * terms["entropy"]
    penalty = check.number("kl_coef", kl_coef) * terms["kl"]
    loss = penalty - terms["objective"] - bonus
    return loss, jax.lax.stop_gradient({"loss": loss, **terms, **spread})
