"""Control flow that stays real under vmap: the predicate is one scalar, and no select takes its place.

A `while` whose predicate has the batch's shape selects its whole carry at every step when it is lowered; a `cond` whose
predicate is batched is a select already in the jaxpr.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from haepo_jax.unbatched import any_in_batch, hold_finished, max_in_batch
from tests.toy_envs import equations


def count_down(x: jax.Array) -> jax.Array:
    """Counts x down to 0 in a loop that runs while any element of the batch needs it."""
    return jax.lax.while_loop(lambda v: any_in_batch(v > 0), lambda v: jnp.where(v > 0, v - 1, v), x)


def guarded(x: jax.Array) -> jax.Array:
    return jax.lax.cond(any_in_batch(x > 2), lambda: jnp.sin(x), lambda: x)


def switched(x: jax.Array) -> jax.Array:
    return jax.lax.switch(max_in_batch(x), [lambda: x, lambda: x + 10, lambda: x + 20])


def nested(function: Callable[[Any], Any], depth: int) -> Callable[[Any], Any]:
    for _ in range(depth):
        function = jax.vmap(function)
    return function


def primitives(function: Callable[[Any], Any], x: jax.Array) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for equation in equations(jax.make_jaxpr(function)(x)):
        found.setdefault(equation.primitive.name, []).append(equation)
    return found


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_the_predicate_of_a_loop_is_a_scalar_under_any_nesting(depth: int) -> None:
    x = jnp.arange(3 ** max(depth, 1)).reshape((3,) * depth if depth else (3,))
    found = primitives(nested(count_down, depth), x)
    (loop,) = found["while"]
    assert [aval.shape for aval in loop.params["cond_jaxpr"].out_avals] == [()]
    assert not nested(count_down, depth)(x).any()


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("function", [guarded, switched])
def test_a_branch_stays_a_branch_under_any_nesting(function: Callable[[Any], Any], depth: int) -> None:
    x = jnp.arange(2.0**depth).reshape((2,) * depth) if function is guarded else jnp.zeros((2,) * depth, jnp.int32)
    found = primitives(nested(function, depth), x)
    (branch,) = found["cond"]
    assert branch.invars[0].aval.shape == ()
    # The only select left is the one that a switch clamps its index with, if any; none has the batch's shape.
    assert not [e for e in found.get("select_n", []) if e.outvars[0].aval.shape]


def test_an_ordinary_any_does_become_a_select() -> None:
    """The control: what the two tests above look for is there when `any_in_batch` is not used."""
    ordinary = jax.vmap(lambda x: jax.lax.while_loop(lambda v: jnp.any(v > 0), lambda v: jnp.where(v > 0, v - 1, v), x))
    (loop,) = primitives(ordinary, jnp.arange(3))["while"]
    assert [aval.shape for aval in loop.params["cond_jaxpr"].out_avals] == [(3,)]
    found = primitives(jax.vmap(lambda x: jax.lax.cond(jnp.any(x > 2), jnp.sin, lambda y: y, x)), jnp.arange(3.0))
    assert "cond" not in found
    assert [e for e in found["select_n"] if e.outvars[0].aval.shape]


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_values(depth: int) -> None:
    flags = jnp.zeros((2, 2, 3), bool).at[1, 0, 2].set(True)
    values = jnp.array([[[3, 1, 2]], [[-4, 9, 0]]])
    assert nested(any_in_batch, depth)(flags).all()
    assert not nested(any_in_batch, depth)(jnp.zeros_like(flags)).any()
    assert (nested(max_in_batch, depth)(values) == 9).all()


def test_only_one_of_two_arguments_batched() -> None:
    """A vmap over something else leaves an unbatched predicate alone."""
    x = jnp.array([1, 0])
    found = jax.vmap(lambda shift: count_down(x) + shift)(jnp.arange(4))
    assert found.tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_an_element_that_has_finished_is_held(depth: int) -> None:
    """Without a batch nothing is selected; in a batch each element stops at its own count."""

    def count_down(x: jax.Array) -> jax.Array:
        def turn(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            return hold_finished(state[0] > 0, (state[0] - 1, state[1] + 2), state)

        return jax.lax.while_loop(lambda state: any_in_batch(state[0] > 0), turn, (x, jnp.int32(0)))[1]

    x = jnp.arange(1, 1 + 3**depth).reshape((3,) * depth)
    assert (nested(count_down, depth)(x) == 2 * x).all()
    assert bool(primitives(nested(count_down, depth), x).get("select_n")) == bool(depth)
