"""A scan over the live part alone: against `jax.lax.scan` over that part, value and gradient."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_envs import equations

from haepo_jax.chunks import scan_live


def function(params: Any, carry: Any, x: Any) -> tuple[Any, Any]:
    hidden = jnp.tanh(params["w"] @ carry["h"] + x["a"] * params["b"])
    return {"h": hidden, "turn": carry["turn"] + 1}, {"y": hidden * carry["turn"], "z": hidden.sum()}


PARAMS = {"w": jax.random.normal(jax.random.key(0), (3, 3)), "b": jnp.arange(3.0)}
CARRY = {"h": jnp.ones(3), "turn": jnp.int32(1)}
INPUTS = {"a": jnp.linspace(-1, 1, 5), "unused": jnp.arange(5)}


def loss(outputs: Any, weights: jax.Array) -> jax.Array:
    return jnp.sum(weights[:, None] * outputs["y"] ** 2) + jnp.sum(weights * outputs["z"])


WEIGHTS = jnp.array([0.3, -1.0, 2.0, 0.5, 1.5])


def live(params: Any, count: jax.Array) -> jax.Array:
    return loss(scan_live(function, params, CARRY, INPUTS, count), WEIGHTS)


@pytest.mark.parametrize("count", range(6))
def test_equals_a_scan_over_the_first_inputs(count: int) -> None:
    def expected(params: Any) -> jax.Array:
        first = jax.tree.map(lambda x: x[:count], INPUTS)
        outputs = jax.lax.scan(lambda carry, x: function(params, carry, x), CARRY, first)[1]
        return loss(outputs, WEIGHTS[:count])

    found = jax.jit(jax.value_and_grad(live))(PARAMS, jnp.int32(count))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, jax.value_and_grad(expected)(PARAMS))
    outputs = scan_live(function, PARAMS, CARRY, INPUTS, jnp.int32(count))
    assert not any(np.asarray(leaf)[count:].any() for leaf in jax.tree.leaves(outputs))


@pytest.mark.parametrize("order", ["vmap of grad", "grad of vmap"])
def test_lanes_that_share_a_count(order: str) -> None:
    lanes = jax.tree.map(lambda x: x * jnp.array([1.0, 0.5]).reshape(2, *[1] * x.ndim), PARAMS)
    count = jnp.int32(3)
    if order == "vmap of grad":
        found = jax.vmap(jax.grad(live), (0, None))(lanes, count)
    else:
        found = jax.grad(lambda lanes: jnp.sum(jax.vmap(live, (0, None))(lanes, count)))(lanes)
    for lane in range(2):
        alone = jax.grad(live)(jax.tree.map(lambda x, lane=lane: x[lane], lanes), count)
        jax.tree.map(lambda a, b, lane=lane: np.testing.assert_allclose(a[lane], b, rtol=1e-5, atol=1e-6), found, alone)


def test_the_number_of_turns_is_not_compiled_in() -> None:
    program = jax.make_jaxpr(jax.vmap(jax.grad(live), (0, None)))(jax.tree.map(lambda x: x[None], PARAMS), jnp.int32(3))
    loops = [e for e in equations(program) if e.primitive.name == "while"]
    assert [e.params["cond_jaxpr"].out_avals[0].shape for e in loops] == [(), ()], "one loop forward, one back"
    assert not [e for e in equations(program) if e.primitive.name in ("scan", "cond")]
