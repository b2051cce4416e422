"""Spaces, and boxes whose elements have different kinds of bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haepo_jax.networks import Encoder
from haepo_jax.spaces import Box, Discrete

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


def test_spaces_hash_equal_and_refuse_nonsense():
    a = Box(np.array([-1.0, -2.0]), jnp.array([1.0, 2.0]), [2], "float32")
    assert a == Box([-1, -2], [1, 2], (2,)) and hash(a) == hash(Box([-1, -2], [1, 2], (2,)))
    assert Box(np.zeros(3), np.ones(3), (3,)) == Box(0.0, 1.0, (3,), jnp.float32)
    assert a.bounded and not Box(-np.inf, 1, ()).bounded
    assert Discrete(3).shape == () and Discrete(3).dtype == np.int32
    for build in (lambda: Discrete(0), lambda: Box(1, 0, ()), lambda: Box([0, 0], [1, 1], (3,))):
        with pytest.raises(ValueError):
            build()


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3), st.floats(-2, 2))
@settings(deadline=None)
def test_from_unit_stays_in_range(low: float, width: float, action: float):
    box = Box(low, low + width, (1,))
    result = np.asarray(box.from_unit(jnp.asarray([action, -1.0, 1.0, 0.0], jnp.float32)[:, None]))[:, 0]
    bottom, top = np.float32(low), np.float32(low + width)
    slack = 4 * np.spacing(max(abs(bottom), abs(top)))
    # XLA flushes subnormal numbers to zero.
    np.testing.assert_allclose(result[1:3], [bottom, top], rtol=0, atol=1e-37)
    assert bottom - slack <= result[0] <= top + slack
    np.testing.assert_allclose(result[3], (bottom + top) / 2, atol=slack)


def test_from_unit_leaves_unbounded_actions_alone():
    action = jnp.asarray([3.0, -7.0])
    assert Box(-np.inf, np.inf, (2,)).from_unit(action) is action
    per_element = Box([-1, 0], [1, 10], (2,)).from_unit(jnp.asarray([[1.0, 0.0], [-5.0, 5.0]]))
    assert per_element.tolist() == [[1, 5], [-1, 10]]
