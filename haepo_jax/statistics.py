"""Statistics over seeds: interquartile means, bootstrap intervals, and the probability of improvement.

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (arXiv 2108.13264), recommend
them in place of means over a handful of seeds. Pure NumPy; seeds are the last axis.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def mean_of_known(values: npt.ArrayLike) -> Array:
    """The mean of the values that are not NaN, (..., N) -> (...); NaN where there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(np.asarray(values, np.float64), axis=-1))


def interquartile_mean(values: npt.ArrayLike) -> Array:
    """The mean of the middle half of the values along the last axis, (..., N) -> (...); the mean of all if N < 4.

    It is robust to outliers like the median, but uses half of the seeds. NaN where any value is NaN.
    """
    values = np.asarray(values, np.float64)
    if values.shape[-1] < 4:
        return np.asarray(np.mean(values, axis=-1))
    from scipy.stats import trim_mean

    # Older versions of SciPy trim NaN away.
    return np.where(np.isnan(values).any(axis=-1), np.nan, trim_mean(values, 0.25, axis=-1))


def interquartile_mean_of_known(values: npt.ArrayLike) -> Array:
    """The interquartile mean of the finite values of each row, (rows, N) -> (rows,); NaN where there is none."""
    known = [row[np.isfinite(row)] for row in np.asarray(values, np.float64)]
    return np.array([interquartile_mean(row) if row.size else np.nan for row in known], np.float64)


def bootstrap_interval(
    values: npt.ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[Array, Array]:
    """A percentile bootstrap interval of the interquartile mean, resampling the seeds.

    Args:
      values: (..., N), one value per seed; NaN: the seed has no value and is left out.
      confidence: the probability that the interval covers, in (0, 1).
      resamples: the number of bootstrap samples.
      seed: of the random numbers.

    Returns:
      The ends of the interval, low (...) and high (...); NaN where fewer than two seeds have a value.

    Raises:
      ValueError: `confidence` is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be above 0 and below 1, got {confidence}")
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
    """Summarises the returns of N seeds.

    Returns:
      `mean`, `iqm`, `iqm_interval` (95%), `min` and `max` of the finite returns, NaN if there is none, and `not_finite`,
      the number of the others.
    """
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
    """The probability that a run of ours has a higher return than one of theirs (Agarwal et al. 2021).

    Args:
      ours, theirs: for each task the returns of the seeds, (N,); NaN: the seed has no return and is left out. Both sides may
        have different numbers of seeds.
      resamples: the number of bootstrap samples.
      seed: of the random numbers.

    Returns:
      The probability, averaged over tasks, with ties counted half, and the ends of its 95% percentile bootstrap interval,
      stratified by task and side. NaN if a side has no seed; the ends are NaN if every side has only one.
    """
    generator = np.random.default_rng(seed)
    shares, resampled, most = [], [], 1
    for our, their in zip(ours, theirs, strict=True):
        x, y = (side[~np.isnan(side)] for side in (np.asarray(our, np.float64), np.asarray(their, np.float64)))
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
