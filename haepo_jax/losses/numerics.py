"""Numerical building blocks: wide accumulation, masked means, exponentials that cannot overflow, ranks."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# exp(20) = 5e8: far outside any ratio worth trusting, and times a return of 1e12 still finite in float32.
LOG_RATIO_LIMIT = 20.0


def accumulate(x: jax.Array) -> jax.Array:
    """Casts an array of any shape to the type its sums are taken in: at least float32; float64 stays.

    Integers become JAX's default float (float32, or float64 in x64 mode).
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(jnp.result_type(float))
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)


def select(live: jax.Array, x: jax.Array) -> jax.Array:
    """``x`` where ``live`` and 0 elsewhere, shapes equal: a NaN that is masked reaches neither value nor gradient.

    It has to come before anything is computed from ``x``: a NaN times a cotangent of 0 is NaN again.
    """
    return jnp.where(live, x, jnp.zeros_like(x))


def masked_mean(x: jax.Array, live: jax.Array, axis: int | tuple[int, ...] | None = None) -> jax.Array:
    """Mean of ``x`` over the entries where ``live`` (same shape), along ``axis``; 0 where nothing is valid."""
    count = jnp.sum(live, axis=axis, dtype=x.dtype)
    return jnp.sum(select(live, x), axis=axis) / jnp.maximum(count, 1)


def divide(x: jax.Array, y: jax.Array) -> jax.Array:
    """x / y, and 0 with a gradient of 0 where y is 0; shapes broadcast. A NaN in y stays: it must not pass for 0."""
    return jnp.where(y == 0, 0, x / jnp.where(y == 0, 1, y))


def centre(x: jax.Array, live: jax.Array) -> jax.Array:
    """``x`` (..., K) less its mean over the valid entries of the last axis; 0 where masked; exactly 0 where all are
    equal.

    A valid entry is subtracted first: the rounded mean of equal numbers need not be that number.
    """
    shifted = select(live, x - lowest(x, live))
    return select(live, shifted - masked_mean(shifted, live, -1)[..., None])


def standardize(x: jax.Array, live: jax.Array) -> jax.Array:
    """``centre`` over the population standard deviation + 1e-8 of the valid entries of the last axis, (..., K)."""
    centred = centre(x, live)
    deviation = jnp.sqrt(masked_mean(centred**2, live, -1))
    return centred / (deviation[..., None] + 1e-8)


def standardize_all(x: jax.Array, live: jax.Array) -> jax.Array:
    """``standardize`` over all valid entries, whatever the axes."""
    return standardize(x.reshape(-1), live.reshape(-1)).reshape(x.shape)


def decayed_sum(x: jax.Array, decay: jax.Array, *, reverse: bool = False) -> jax.Array:
    """y[t] = decay[t] y[t-1] + x[t] along the first axis, or y[t] = decay[t] y[t+1] + x[t]; decay () or shaped as x."""

    def step(carry: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        added, kept = now
        carry = (kept * carry + added).astype(x.dtype)
        return carry, carry

    decays = jnp.broadcast_to(decay, x.shape).astype(x.dtype)
    return jax.lax.scan(step, jnp.zeros_like(x[0]), (x, decays), reverse=reverse)[1]


def lowest(x: jax.Array, live: jax.Array) -> jax.Array:
    """The smallest valid entry of the last axis, (..., K) -> (..., 1); 0 where nothing is valid."""
    least = jnp.min(jnp.where(live, x, jnp.inf), axis=-1, keepdims=True)
    return select(jnp.any(live, axis=-1, keepdims=True), least)


def centred_ranks(x: jax.Array, live: jax.Array) -> jax.Array:
    """Ranks along the last axis among the valid entries, ties sharing their mean rank, scaled to [-0.5, 0.5]; (..., K)
    -> (..., K).

    0 where masked and for a single valid entry. Comparing all pairs beats sorting up to thousands of entries.
    """
    own, rival = x[..., :, None], x[..., None, :]
    # Whole numbers: XLA's CPU compiler writes out all pairs before it sums floats.
    order = (rival < own).astype(jnp.int32) - (rival > own).astype(jnp.int32)
    ahead = jnp.sum(live[..., None, :].astype(jnp.int32) * order, axis=-1, dtype=jnp.int32)
    count = jnp.sum(live, axis=-1, keepdims=True, dtype=x.dtype)
    return select(live & (count > 1), ahead.astype(x.dtype) / (2 * jnp.maximum(count - 1, 1)))


def rank_correlation(x: jax.Array, y: jax.Array, live: jax.Array) -> jax.Array:
    """Spearman's rank correlation over the valid entries of the last axis, (..., K) twice -> (...); 0 where
    undefined."""
    a, b = centred_ranks(x, live), centred_ranks(y, live)
    scale = jnp.sqrt(jnp.sum(a**2, axis=-1) * jnp.sum(b**2, axis=-1))
    return divide(jnp.sum(a * b, axis=-1), scale)


def bounded_exp(x: jax.Array) -> jax.Array:
    """exp(x) up to the limit, its tangent beyond: finite, and its gradient still points the right way."""
    return jnp.exp(jnp.minimum(x, LOG_RATIO_LIMIT)) + _beyond(x)


def k3(x: jax.Array) -> jax.Array:
    """exp(x) - 1 - x, its exponential bounded as in ``bounded_exp``; the digits of a small x are kept."""
    return jnp.expm1(jnp.minimum(x, LOG_RATIO_LIMIT)) + _beyond(x) - x


def _beyond(x: jax.Array) -> jax.Array:
    return jnp.exp(LOG_RATIO_LIMIT) * jnp.maximum(x - LOG_RATIO_LIMIT, 0)


def clipped_surrogate(
    log_ratio: jax.Array,
    advantages: jax.Array,
    clip_eps: jax.Array,
    clip_eps_high: jax.Array | None = None,
    around: jax.Array | float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """PPO's per-step objective and whether the ratio lies outside the clip range; all of one shape (Schulman 2017, eq.
    7). The range goes from ``around`` - ``clip_eps`` to ``around`` + ``clip_eps_high``, by default ``clip_eps``."""
    high = clip_eps if clip_eps_high is None else clip_eps_high
    ratio = bounded_exp(log_ratio)
    least, most = around - clip_eps, around + high
    clipped = jnp.clip(ratio, least, most)
    return jnp.minimum(ratio * advantages, clipped * advantages), (ratio < least) | (ratio > most)
