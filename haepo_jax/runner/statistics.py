"""Statistics over seeds that Agarwal et al. (arXiv 2108.13264) recommend: interquartile means, bootstrap intervals."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def mean_of_known(values: npt.ArrayLike, axis: int = -1) -> Array:
    """The mean over an axis of the values that are not NaN; NaN where there is none: (..., N) -> (...)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(np.asarray(values, np.float64), axis=axis))


def interquartile_mean(values: npt.ArrayLike) -> Array:
    """The mean of the middle half over the last axis, of all where N < 4: (..., N) -> (...). NaN where any value is."""
    values = np.asarray(values, np.float64)
    if values.shape[-1] < 4:
        return np.asarray(np.mean(values, axis=-1))
    from scipy.stats import trim_mean

    return np.asarray(trim_mean(values, 0.25, axis=-1))


def interquartile_mean_of_known(values: npt.ArrayLike) -> Array:
    """The interquartile mean of those of each row that are finite; NaN where none is: (rows, N) -> (rows,)."""
    known = [row[np.isfinite(row)] for row in np.asarray(values, np.float64)]
    return np.array([interquartile_mean(row) if row.size else np.nan for row in known], np.float64)


def bootstrap_interval(
    values: npt.ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[Array, Array]:
    """Percentile bootstrap of the interquartile mean over the last axis: (..., N) -> low (...), high (...).

    The seeds are resampled. A seed without a value (NaN) is left out of its row, and a row with fewer than two values has
    the interval NaN: one seed says nothing about others.
    """
    values = np.asarray(values, np.float64)
    rows = values.reshape(-1, values.shape[-1])
    limits = np.full((2, len(rows)), np.nan)
    known = ~np.isnan(rows)
    counts = known.sum(axis=1)
    for count in np.unique(counts[counts > 1]):
        from scipy.stats import bootstrap

        chosen = counts == count
        # Rows with equally many values share the resampled indices, so that all of them take one call.
        result = bootstrap(
            (rows[chosen][known[chosen]].reshape(-1, count),),
            lambda sample, axis: interquartile_mean(np.moveaxis(sample, axis, -1)),
            axis=-1,
            vectorized=True,
            confidence_level=confidence,
            n_resamples=resamples,
            batch=max(1, 4_000_000 // (count * chosen.sum())),
            method="percentile",
            rng=np.random.default_rng(seed),
        )
        limits[:, chosen] = result.confidence_interval
    low, high = limits.reshape(2, *values.shape[:-1])
    return low, high


def describe_returns(values: npt.ArrayLike) -> dict[str, Any]:
    """`mean`, `iqm`, `iqm_interval` (95%), `min` and `max` of those of the returns (N,) that are finite, NaN where none is;
    and how many are `not_finite`."""
    every = np.asarray(values, np.float64)
    finite = np.isfinite(every)
    known = every[finite] if finite.any() else np.array([np.nan])
    low, high = bootstrap_interval(known)
    return {
        "mean": float(known.mean()),
        "iqm": float(interquartile_mean(known)),
        "iqm_interval": [float(low), float(high)],
        "min": float(known.min()),
        "max": float(known.max()),
        "not_finite": int((~finite).sum()),
    }


def probability_of_improvement(
    ours: Sequence[npt.ArrayLike], theirs: Sequence[npt.ArrayLike], *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """How often a seed of ours beats a seed of theirs, ties counting half: arrays (N,) per task -> value, low, high.

    The mean over tasks; the 95% interval is a percentile bootstrap stratified by task and side. NaN where a side has no
    seed, and the limits where both have only one.
    """
    generator = np.random.default_rng(seed)
    shares, resampled, most = [], [], 1
    for our, their in zip(ours, theirs, strict=True):
        x, y = np.asarray(our, np.float64), np.asarray(their, np.float64)
        if not len(x) or not len(y):
            return np.nan, np.nan, np.nan
        wins = (x[:, None] > y) + 0.5 * (x[:, None] == y)
        shares.append(wins.mean())
        # How often each seed is drawn is all that a resample changes.
        counts = [generator.multinomial(n, np.full(n, 1 / n), resamples) / n for n in wins.shape]
        resampled.append(np.einsum("ri,ij,rj->r", counts[0], wins, counts[1]))
        most = max(most, *wins.shape)
    limits = np.quantile(np.mean(resampled, axis=0), [0.025, 0.975]) if most > 1 else [np.nan, np.nan]
    return float(np.mean(shares)), float(limits[0]), float(limits[1])
