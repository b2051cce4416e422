from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haepo_jax.normalization import RunningStatistics

RNG = np.random.default_rng(0)
update = jax.jit(lambda statistics, x, mask: statistics.update(x, mask))


def batches(count: int, scale: float = 1.0, shift: float = 0.0) -> list[tuple[dict[str, Any], np.ndarray]]:
    """(T, B) steps of a dictionary observation; NaN where the mask is false."""
    found = []
    for _ in range(count):
        mask = RNG.random((5, 4)) < 0.6
        x = {
            "vector": (RNG.normal(size=(5, 4, 3)) * np.array([1, 10, 0.01]) * scale + shift).astype(np.float32),
            "scalar": RNG.integers(0, 50, (5, 4)).astype(np.int32),
        }
        x["vector"][~mask] = np.nan
        x["scalar"][~mask] = 10**9
        found.append((x, mask))
    return found


def moments(data: list[tuple[dict[str, Any], np.ndarray]], name: str) -> tuple[np.ndarray, np.ndarray]:
    live = np.concatenate([x[name][mask] for x, mask in data]).astype(np.float64)
    return live.mean(0), live.std(0)


EMPTY = RunningStatistics.of({"vector": jnp.zeros(3), "scalar": jnp.int32(0)})


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_equals_the_moments_of_everything_seen(shift: float) -> None:
    """However many batches it came in, and far from zero too, where a sum of squares would lose its digits."""
    data = batches(6, shift=shift)
    statistics = EMPTY
    for x, mask in data:
        statistics = update(statistics, x, mask)
    assert float(statistics.count) == sum(mask.sum() for _, mask in data)
    for name in ("vector", "scalar"):
        mean, std = moments(data, name)
        np.testing.assert_allclose(statistics.mean[name], mean, rtol=1e-5, atol=1e-5)
        found = np.sqrt(np.asarray(statistics.squares[name]) / float(statistics.count))
        # At 1000 the observations themselves carry float32 rounding of 6e-5, next to a deviation of 0.01.
        np.testing.assert_allclose(found, std, rtol=1e-4 if shift == 0 else 1e-2)


def test_normalized_observations_have_mean_0_and_deviation_1() -> None:
    x, mask = batches(1)[0]
    seen = update(EMPTY, x, mask).normalize({"vector": jnp.asarray(x["vector"]), "scalar": jnp.asarray(x["scalar"])})
    for name in ("vector", "scalar"):
        live = np.asarray(seen[name])[mask]
        assert live.dtype == np.float32
        np.testing.assert_allclose(live.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(live.std(0), 1, rtol=1e-3)


def test_is_the_identity_at_the_start() -> None:
    x = {"vector": jnp.array([1.0, -2.5, 9.0]), "scalar": jnp.int32(7)}
    seen = EMPTY.normalize(x)
    np.testing.assert_allclose(seen["vector"], x["vector"], rtol=1e-6)
    assert float(seen["scalar"]) == 7


def test_is_clipped() -> None:
    x, mask = batches(1)[0]
    seen = update(EMPTY, x, mask).normalize({"vector": jnp.full(3, 1e9), "scalar": jnp.int32(-(10**9))})
    np.testing.assert_array_equal(seen["vector"], 10)
    assert float(seen["scalar"]) == -10


def test_a_batch_with_nothing_live_changes_nothing() -> None:
    x, mask = batches(1)[0]
    before = update(EMPTY, x, mask)
    nan = jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan), x)
    for statistics in (before, EMPTY):
        after = update(statistics, nan, np.zeros_like(mask))
        chex.assert_trees_all_equal(after, statistics)


def test_a_constant_observation_stays_finite() -> None:
    statistics = RunningStatistics.of(jnp.zeros(2)).update(jnp.full((6, 2), 3.0), jnp.ones(6, bool))
    np.testing.assert_array_equal(statistics.normalize(jnp.full(2, 3.0)), 0)


def test_a_single_observation() -> None:
    statistics = RunningStatistics.of(jnp.zeros(2)).update(jnp.array([[5.0, -1.0]]), jnp.ones(1, bool))
    np.testing.assert_array_equal(statistics.mean, [5, -1])
    assert np.all(np.isfinite(statistics.normalize(jnp.zeros(2))))


def test_vmaps_over_seeds() -> None:
    data = batches(2)
    x = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[x for x, _ in data])
    mask = jnp.stack([mask for _, mask in data])
    together = jax.jit(jax.vmap(EMPTY.update))(x, mask)
    for seed, (one, own) in enumerate(data):
        alone = update(EMPTY, one, own)
        chex.assert_trees_all_close(jax.tree.map(lambda x: x[seed], together), alone, rtol=1e-5)  # noqa: B023


def test_observations_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"trained on observations of shape \(3,\), not \(4,\)"):
        EMPTY.normalize({"vector": jnp.zeros(4), "scalar": jnp.int32(0)})
