"""Boxes whose elements have different kinds of bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haepo_jax.networks import Encoder
from haepo_jax.spaces import Box

INF = np.inf


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        (Box([0, -INF], [10, INF], (2,)), [[10.0, 7.0], [0.0, -7.0], [5.0, 0.0]]),
        (Box([0, 0], [10, INF], (2,)), [[10.0, 7.0], [0.0, 0.0], [5.0, 0.0]]),
        (Box(-INF, 2, (2,)), [[2.0, 2.0], [-7.0, -7.0], [0.0, 0.0]]),
        (Box(-INF, INF, (2,)), [[7.0, 7.0], [-7.0, -7.0], [0.0, 0.0]]),
        (Box(-2, 2, (2,)), [[2.0, 2.0], [-2.0, -2.0], [0.0, 0.0]]),
        (Box([-2, 0], [2, 1], (2,)), [[2.0, 1.0], [-2.0, 0.0], [0.0, 0.5]]),
    ],
)
def test_each_element_is_brought_to_its_own_bounds(box: Box, expected: list[list[float]]):
    units = jnp.array([[7.0, 7.0], [-7.0, -7.0], [0.0, 0.0]])
    with jax.numpy_rank_promotion("raise"):
        np.testing.assert_array_equal(box.from_unit(units), expected)
        np.testing.assert_array_equal(box.from_unit(units[0]), expected[0])


def test_an_action_has_the_dtype_of_its_space():
    assert Box(0, 1, (2,), np.float16).from_unit(jnp.zeros(2)).dtype == np.float16


def test_integers_are_scaled_where_they_have_bounds():
    encoder = Encoder(Box([0, -INF], [10, INF], (2,), np.int32))
    observation = jnp.array([[10, 7], [0, -7]])
    np.testing.assert_array_equal(encoder.apply({}, observation), [[1.0, 7.0], [-1.0, -7.0]])
