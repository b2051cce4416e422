from __future__ import annotations

import jax
import numpy as np
import pytest
from scipy import stats

from haepo_jax.algorithms.learning import epoch_orders


@pytest.mark.parametrize("size", [1, 2, 3, 64, 100, 4096, 5000])
def test_every_epoch_is_a_permutation_of_its_own(size: int) -> None:
    orders = np.asarray(jax.jit(epoch_orders, static_argnums=(1, 2))(jax.random.key(0), 3, size))
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(size), (3, 1)))
    assert orders.dtype == np.int32
    assert size < 10 or len({tuple(order) for order in orders}) == 3


def test_every_index_comes_equally_often_at_every_place() -> None:
    """Chi-square over 20,000 orders of 6: all 720 of them, and every (place, index)."""
    orders = np.asarray(epoch_orders(jax.random.key(1), 20_000, 6))
    numbers = orders @ 6 ** np.arange(6)
    counts = np.unique(numbers, return_counts=True)[1]
    assert len(counts) == 720
    assert stats.chisquare(counts).pvalue > 1e-3
    for place in range(6):
        assert stats.chisquare(np.bincount(orders[:, place], minlength=6)).pvalue > 1e-3


@pytest.mark.parametrize("size", [2**15, 2**17, 2**20])
def test_four_in_a_row_come_in_any_order(size: int) -> None:
    """As HAEPO's groups are formed; a tie would keep two neighbours in theirs."""
    order = np.asarray(epoch_orders(jax.random.key(3), 1, size))[0].reshape(-1, 4)
    ascending = np.mean(np.all(np.diff(order, axis=1) > 0, axis=1))
    assert abs(ascending - 1 / 24) < 0.02 + 4 * np.sqrt(1 / 24 / len(order))
    nearby = np.mean(np.all(np.abs(np.diff(order, axis=1)) < size // 64, axis=1))
    assert nearby < 1e-3


@pytest.mark.parametrize("size", [2**15, 2**17])
def test_neighbours_part(size: int) -> None:
    """Which minibatch of four an index is in does not depend on its neighbour's."""
    order = np.asarray(epoch_orders(jax.random.key(2), 1, size))[0]
    minibatch = np.empty(size, int)
    minibatch[order] = np.arange(size) // (size // 4)
    together = np.mean(minibatch[1:] == minibatch[:-1])
    assert abs(together - 0.25) < 4 * np.sqrt(0.25 * 0.75 / size)
