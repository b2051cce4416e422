"""Normalisation of returns within a group."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from haepo_jax.losses._checks import Checks
from haepo_jax.losses.numerics import centre, centred_ranks, lowest, rounding, select, standardize

NORMALIZATIONS = ("none", "center", "standardize", "rank")


def normalize_returns(
    returns: ArrayLike, *, normalize: str = "standardize", mask: ArrayLike | None = None
) -> jax.Array:
    """Normalises the returns R~ of each group over its valid members; the gradient is stopped.

    Args:
      returns: (..., K), one return per trajectory; leading axes are groups; integers are cast.
      normalize: "none"; "center" subtracts the group mean; "standardize" also divides by the population standard
        deviation + 1e-8 (GRPO, arXiv 2402.03300, section 4.1.2); "rank" gives centred ranks in [-0.5, 0.5], with the
        mean rank for ties, as in evolution strategies (Salimans 2017, arXiv 1703.03864).
      mask: (..., K), bool or 0/1: which members are valid; default all.

    Returns:
      (..., K), at least float32, 0 where masked. Except with "none", a single return, or several that are equal up to
      rounding (see `numerics.rounding`), give exactly 0.

    Raises:
      TypeError: ``returns`` or ``mask`` is not numeric.
      ValueError: shapes differ, or ``normalize`` is unknown.

    Examples:
      >>> import jax.numpy as jnp
      >>> from haepo_jax.losses import normalize_returns
      >>> print(normalize_returns(jnp.array([1, 2, 2, 100]), normalize="rank").round(3))
      [-0.5  0.   0.   0.5]
      >>> print(normalize_returns(jnp.array([1.0, 3.0]), normalize="standardize"))
      [-1.  1.]
    """
    check = Checks("normalize_returns")
    check.option("normalize", normalize, NORMALIZATIONS)
    values = check.floats("returns", returns, min_ndim=1, integers=jnp.result_type(float))
    valid = check.mask("mask", mask, values.shape, like="the shape of returns")
    values = select(valid, jax.lax.stop_gradient(values))
    if normalize == "none":
        return values
    if normalize == "rank":
        return centred_ranks(values, valid, rounding(values, valid))
    spread = jnp.max(select(valid, values - lowest(values, valid)), axis=-1, keepdims=True)
    is_equal = (spread <= rounding(values, valid)) & jnp.isfinite(spread)
    values = jnp.where(is_equal, jnp.zeros_like(values), values)
    return centre(values, valid) if normalize == "center" else standardize(values, valid)
