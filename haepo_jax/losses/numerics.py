"""Numerical building blocks: accumulation in float32, masked means, exponentials that cannot overflow, ranks."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

# exp(20) = 5e8 is far beyond any useful ratio, and times a return of 1e12 is still finite in float32.
LOG_RATIO_LIMIT = 20.0


def accumulate(x: jax.Array) -> jax.Array:
    """Casts an array to the dtype that its sums are computed in: at least float32; float64 is kept.

    Integers become JAX's default float (float32, or float64 in x64 mode).
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(jnp.result_type(float))
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)


def select(valid: jax.Array, x: jax.Array) -> jax.Array:
    """``x`` where ``valid``, 0 elsewhere; equal shapes. Keeps a masked NaN out of both value and gradient.

    Apply it before computing anything from ``x``: a NaN times a cotangent of 0 is again NaN.
    """
    chex.assert_equal_shape([valid, x])
    return jnp.where(valid, x, jnp.zeros_like(x))


def masked_mean(x: jax.Array, valid: jax.Array, axis: int | tuple[int, ...] | None = None) -> jax.Array:
    """Mean of ``x`` over the entries where ``valid`` (same shape), along ``axis``; 0 if none is."""
    count = jnp.sum(valid, axis=axis, dtype=x.dtype)
    return jnp.sum(select(valid, x), axis=axis) / jnp.maximum(count, 1)


def masked_means(valid: jax.Array, *arrays: jax.Array) -> list[jax.Array]:
    """`masked_mean` of several arrays, cast to the dtype of the first; in a single reduction on an accelerator."""

    def at_once(valid: jax.Array, *arrays: jax.Array) -> list[jax.Array]:
        rows = jnp.stack([select(valid, x).reshape(-1) for x in arrays])
        return list(jnp.sum(rows, axis=1) / jnp.maximum(jnp.sum(valid, dtype=rows.dtype), 1))

    def apart(valid: jax.Array, *arrays: jax.Array) -> list[jax.Array]:
        return [masked_mean(x, valid) for x in arrays]

    arrays = tuple(x.astype(arrays[0].dtype) for x in arrays)
    return jax.lax.platform_dependent(valid, *arrays, cpu=apart, default=at_once)


def divide(x: jax.Array, y: jax.Array) -> jax.Array:
    """x / y, or 0 with zero gradient where y is 0; shapes broadcast. NaNs in y propagate."""
    return jnp.where(y == 0, 0, x / jnp.where(y == 0, 1, y))


def centre(x: jax.Array, valid: jax.Array) -> jax.Array:
    """``x`` (..., K) minus its mean over the valid entries of the last axis; 0 where masked.

    Equal entries give exactly 0: a valid entry is subtracted first, since the mean of equal numbers can be rounded.
    """
    shifted = select(valid, x - lowest(x, valid))
    return select(valid, shifted - masked_mean(shifted, valid, -1)[..., None])


def standardize(x: jax.Array, valid: jax.Array, least: ArrayLike = 0.0) -> jax.Array:
    """``centre`` divided by the population standard deviation of the valid entries of the last axis + 1e-8, or by ``least`` if
    that is larger."""
    centred = centre(x, valid)
    deviation = jnp.sqrt(masked_mean(centred**2, valid, -1))
    return centred / jnp.maximum(deviation[..., None] + 1e-8, least)


def standardize_all(x: jax.Array, valid: jax.Array, least: ArrayLike = 0.0) -> jax.Array:
    """``standardize`` over all valid entries of all axes."""
    return standardize(x.reshape(-1), valid.reshape(-1), least).reshape(x.shape)


def decayed_sum(x: jax.Array, decay: jax.Array, *, start: jax.Array | None = None, reverse: bool = False) -> jax.Array:
    """y[t] = decay[t] y[t-1] + x[t] along the first axis, or with ``reverse`` y[t] = decay[t] y[t+1] + x[t]; (T, ...).

    A decay of 0 blocks everything before it, NaN included. The initial value y[-1] (or y[T]) is ``start``, (...), or 0.

    The algorithm is chosen per platform at lowering. On a CPU a loop over time does the least arithmetic and is
    fastest. On an accelerator every iteration would launch several kernels, so sums at distances 1, 2, 4, ... are added
    instead, in log2(T) steps that XLA fuses into few kernels.
    """
    decay = jnp.broadcast_to(decay, x.shape).astype(x.dtype)
    start = jnp.zeros_like(x[0]) if start is None else start.astype(x.dtype)
    chex.assert_shape(start, x.shape[1:])
    ways = [functools.partial(way, reverse=reverse) for way in (_sum_by_steps, _sum_by_doubling)]
    return jax.lax.platform_dependent(x, decay, start, cpu=ways[0], default=ways[1])


def _through(decay: jax.Array, x: jax.Array) -> jax.Array:
    return decay * jnp.where(decay == 0, 0, x)


def _sum_by_steps(x: jax.Array, decay: jax.Array, start: jax.Array, *, reverse: bool) -> jax.Array:
    def step(total: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        total = _through(now[1], total) + now[0]
        return total, total

    return jax.lax.scan(step, start, (x, decay), reverse=reverse)[1]


def _sum_by_doubling(x: jax.Array, decay: jax.Array, start: jax.Array, *, reverse: bool) -> jax.Array:
    length, begin = x.shape[0], -1 if reverse else 0
    x = x.at[begin].add(_through(decay[begin], start))

    def earlier(x: jax.Array, distance: int) -> jax.Array:
        """``x`` shifted by ``distance`` steps and padded with 0."""
        nothing = jnp.zeros((distance, *x.shape[1:]), x.dtype)
        return jnp.concatenate([x[distance:], nothing] if reverse else [nothing, x[:-distance]])

    distance = 1
    while distance < length:
        # x[t] holds the sum of the last `distance` steps, decay[t] the product of their decays.
        x = x + _through(decay, earlier(x, distance))
        decay = decay * earlier(decay, distance)
        distance *= 2
    return x


def rounding(x: jax.Array, valid: jax.Array) -> jax.Array:
    """The difference up to which valid entries of the last axis count as equal, (..., K) -> (..., 1): 16 units in the last
    place of the largest. The same rewards, added in another order, give sums that differ by about as much."""
    return 16 * jnp.finfo(x.dtype).eps * jnp.max(jnp.abs(select(valid, x)), axis=-1, keepdims=True)


def lowest(x: jax.Array, valid: jax.Array) -> jax.Array:
    """The smallest valid entry along the last axis, (..., K) -> (..., 1); 0 if none is valid."""
    chex.assert_equal_shape([x, valid])
    least = jnp.min(jnp.where(valid, x, jnp.inf), axis=-1, keepdims=True)
    return select(jnp.any(valid, axis=-1, keepdims=True), least)


def centred_ranks(x: jax.Array, valid: jax.Array, tolerance: jax.Array | float = 0.0) -> jax.Array:
    """Ranks of the valid entries along the last axis, scaled to [-0.5, 0.5]; (..., K) -> (..., K).

    Ties, entries that differ by no more than ``tolerance`` (..., 1), get their mean rank; masked entries and a single
    valid entry get 0. Comparing all pairs is faster than sorting for up to thousands of entries.
    """
    chex.assert_equal_shape([x, valid])
    left, right = x[..., :, None], x[..., None, :]
    margin = jnp.broadcast_to(jnp.asarray(tolerance, x.dtype), (*x.shape[:-1], 1))[..., None]
    # Integers: with floats XLA's CPU compiler materialises all pairs before summing.
    order = (left - right > margin).astype(jnp.int32) - (right - left > margin).astype(jnp.int32)
    ahead = jnp.sum(valid[..., None, :].astype(jnp.int32) * order, axis=-1, dtype=jnp.int32)
    count = jnp.sum(valid, axis=-1, keepdims=True, dtype=x.dtype)
    return select(valid & (count > 1), ahead.astype(x.dtype) / (2 * jnp.maximum(count - 1, 1)))


def rank_correlation(x: jax.Array, y: jax.Array, valid: jax.Array) -> jax.Array:
    """Spearman's rank correlation of valid entries along the last axis, (..., K), (..., K) -> (...); 0 if undefined."""
    chex.assert_equal_shape([x, y, valid])
    a, b = centred_ranks(x, valid), centred_ranks(y, valid)
    scale = jnp.sqrt(jnp.sum(a**2, axis=-1) * jnp.sum(b**2, axis=-1))
    return divide(jnp.sum(a * b, axis=-1), scale)


def bounded_exp(x: jax.Array) -> jax.Array:
    """exp(x), continued by its tangent beyond ``LOG_RATIO_LIMIT``: finite, with a gradient of the right sign."""
    return jnp.exp(jnp.minimum(x, LOG_RATIO_LIMIT)) + _beyond(x)


def k3(x: jax.Array) -> jax.Array:
    """exp(x) - 1 - x with the exponential of ``bounded_exp``; accurate for small x."""
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
    """PPO's per-step objective (Schulman 2017, eq. 7), and whether the ratio lies outside the clip range; same shapes.

    The range is [``around`` - ``clip_eps``, ``around`` + ``clip_eps_high``], the latter by default ``clip_eps``.
    """
    chex.assert_equal_shape([log_ratio, advantages])
    high = clip_eps if clip_eps_high is None else clip_eps_high
    ratio = bounded_exp(log_ratio)
    least, most = around - clip_eps, around + high
    clipped = jnp.clip(ratio, least, most)
    return jnp.minimum(ratio * advantages, clipped * advantages), (ratio < least) | (ratio > most)
