"""The weights of histories that are tried in the place of the softmax, and the softmax with a clip."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import haepo_jax as hx

GROUPS = np.random.default_rng(0).normal(size=(5, 3, 4))


@pytest.fixture
def regimes(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "experiments"))
    return importlib.import_module("replay.regimes")


def weights_of(function: Any, scores: np.ndarray, temperature: float) -> np.ndarray:
    return np.asarray(function(jnp.asarray(scores), jnp.ones(scores.shape, bool), jnp.full((1,), temperature)))


def test_sparsemax_is_the_nearest_point_of_the_simplex(regimes: Any) -> None:
    some = False
    for scores in GROUPS.reshape(-1, 4)[:5]:
        scaled = scores / (4 * 0.2)
        bounds, simplex = [(0, 1)] * 4, {"type": "eq", "fun": lambda w: w.sum() - 1}
        nearest = scipy.optimize.minimize(
            lambda w, z=scaled: ((w - z) ** 2).sum(), np.full(4, 0.25), bounds=bounds, constraints=simplex, tol=1e-12
        ).x
        np.testing.assert_allclose(weights_of(regimes.sparsemax, scores, 0.2), nearest, atol=1e-4)
        some |= bool((nearest < 1e-6).any())
    assert some


def test_pairwise_weights_count_who_is_ahead(regimes: Any) -> None:
    """At a low temperature they are ranks: 0, 1, 2 and 3 of the others, and half of oneself."""
    weights = weights_of(regimes.pairwise, GROUPS, 1e-4)
    ranks = GROUPS.argsort(axis=-1).argsort(axis=-1)
    np.testing.assert_allclose(weights, (ranks + 0.5) / 8, rtol=1e-5)


def test_the_temperature_that_keeps_the_effective_sample_size(regimes: Any) -> None:
    for target in (0.5, 0.9):
        weights = weights_of(regimes.constant_ess, GROUPS, target)
        np.testing.assert_allclose(1 / (4 * (weights**2).sum(axis=-1)), target, rtol=0.01)
    ours = jax.jacobian(lambda s: regimes.constant_ess(s, s > 0, jnp.full((1,), 0.7)))(jnp.asarray(GROUPS[0, 0]))
    weights = weights_of(regimes.constant_ess, GROUPS[0, 0], 0.7)
    # The temperature cancels: that of the loss, 0.7, times the gradient of a softmax at the one found, which is 1/tau.
    np.testing.assert_allclose(0.7 * ours, np.diag(weights) - np.outer(weights, weights), atol=1e-6)


def test_all_have_the_slope_of_the_softmax_where_scores_are_equal(regimes: Any) -> None:
    equal, mask, tau = jnp.zeros(4), jnp.ones(4, bool), jnp.full((1,), 0.3)
    expected = jax.jacobian(lambda s: jax.nn.softmax(s / 0.3))(equal)
    for function in (regimes.sparsemax, regimes.pairwise):
        np.testing.assert_allclose(function(equal, mask, tau), 0.25)
        found = jax.jacobian(lambda s, function=function: function(s, mask, tau))(equal)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_clip_stops_gradients_beyond_its_range_alone(regimes: Any) -> None:
    settings: dict[str, Any] = {
        "num_envs": 4,
        "num_steps": 8,
        "replay_batches": 2,
        "num_epochs": 1,
        "num_minibatches": 2,
    }
    step = jax.jit(lambda algo, state: algo.train_step(state)[0])
    after = {}
    for name, kind, own in (
        ("haepo", hx.HAEPO, {}),
        ("wide", regimes.SoftmaxAndClip, {"clip_eps": 1e6}),
        ("narrow", regimes.SoftmaxAndClip, {"clip_eps": 1e-6}),
    ):
        algo = kind("CartPole-v1", total_steps=1_000, learning_rate=0.03, **settings, **own)
        state = step(algo, step(algo, algo.init(jax.random.key(0))))
        after[name] = np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.params)])
    np.testing.assert_allclose(after["wide"], after["haepo"], rtol=1e-4, atol=1e-6)
    assert np.abs(after["narrow"] - after["haepo"]).max() > 1e-3
