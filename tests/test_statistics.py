"""Interquartile means, bootstrap intervals and the probability of improvement."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from haepo_jax.statistics import bootstrap_interval, interquartile_mean, mean_of_known, probability_of_improvement


def test_interquartile_mean_leaves_out_the_outer_quarters() -> None:
    values = np.array([[1000.0, 1, 2, 3, 4, 5, 6, -1000], [0, 0, 0, 0, 0, 0, 0, 8]])
    np.testing.assert_allclose(interquartile_mean(values), [3.5, 0.0])
    np.testing.assert_allclose(interquartile_mean([1.0, 2.0, 6.0]), 3.0)


def test_mean_of_known_skips_what_is_missing_in_silence() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(mean_of_known([[1.0, np.nan, 3.0], [np.nan] * 3]), [2.0, np.nan])


def test_bootstrap_interval_holds_the_true_middle_about_as_often_as_it_says() -> None:
    truth, hits = 3.0, 0
    samples = np.random.default_rng(0).normal(truth, 1.0, (200, 20))
    low, high = bootstrap_interval(samples, resamples=300)
    hits = int(np.sum((low <= truth) & (truth <= high)))
    assert 170 <= hits <= 199
    assert (low < interquartile_mean(samples)).all() and (interquartile_mean(samples) < high).all()


def test_bootstrap_interval_of_few_seeds() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = bootstrap_interval([[1.0], [2.0]])
        assert np.isnan(low).all() and np.isnan(high).all() and low.shape == (2,)
        low, high = bootstrap_interval([[5.0, 5.0, 5.0], [np.nan, np.nan, 1.0], [np.nan, 2.0, 2.0]])
        np.testing.assert_array_equal(low, [5.0, np.nan, 2.0])
        np.testing.assert_array_equal(high, [5.0, np.nan, 2.0])


def test_probability_of_improvement() -> None:
    value, low, high = probability_of_improvement([[3.0, 4.0]], [[1.0, 2.0]])
    assert (value, low, high) == (1.0, 1.0, 1.0)
    value, low, high = probability_of_improvement([[1.0, 2.0], [5.0]], [[1.0, 2.0], [9.0]])
    assert value == pytest.approx((0.5 + 0.0) / 2) and 0 <= low <= value <= high <= 1
    generator = np.random.default_rng(0)
    ours, theirs = generator.normal(1.0, 1, 40), generator.normal(0, 1, 50)
    value, low, high = probability_of_improvement([ours], [theirs])
    assert low < 0.7602 < high, "the probability that one of N(1, 1) exceeds one of N(0, 1) is Phi(1 / sqrt 2)"
    assert value == pytest.approx(np.mean(ours[:, None] > theirs)) and low < value < high
    assert probability_of_improvement([[1.0]], [[0.0]])[0] == 1.0
    assert np.isnan(probability_of_improvement([[1.0]], [[0.0]])[1:]).all()
    for nothing in ([], [np.nan]):
        assert np.isnan(probability_of_improvement([nothing], [[0.0]])).all()
        assert np.isnan(probability_of_improvement([[0.0]], [nothing])).all()
    assert probability_of_improvement([[1.0, np.nan]], [[np.nan, 0.0]])[0] == 1.0
