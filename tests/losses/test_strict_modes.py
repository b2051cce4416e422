"""The public losses in other people's loops, under jax's stricter settings: value and gradient of every one of them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haepo_jax import losses
from tests.losses.test_loss_inputs import CASES, FEW

TRACED: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "strict promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "rank promotion raises": lambda: jax.numpy_rank_promotion("raise"),
    "x64, strict": lambda: _both(jax.enable_x64(True), jax.numpy_dtype_promotion("strict")),
}
RUN: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "debug_nans": lambda: jax.debug_nans(True),
    "disable_jit": lambda: jax.disable_jit(),
}


@contextlib.contextmanager
def _both(*contexts: contextlib.AbstractContextManager[Any]) -> Any:
    with contextlib.ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


def arrays(groups: tuple[int, ...]) -> dict[str, Any]:
    """Inputs of every case in NumPy's 32 bits: steps (5, *groups, 4), the third member one step shorter, integer rewards."""
    rng = np.random.default_rng(0)
    shape = (5, *groups, 4)
    steps = np.ones(shape, bool)
    steps[-1, ..., 2] = False
    real = lambda *size: rng.normal(size=size).astype(np.float32)  # noqa: E731
    names = ("l", "l_behaviour", "l_reference", "values", "targets", "values_behaviour")
    totals = ("L", "L_behaviour", "L_reference")
    return {
        **{name: real(*shape) for name in names},
        **{name: real(*shape[1:]) for name in totals},
        "rewards": real(*shape),
        "returns": rng.integers(0, 9, shape[1:], dtype=np.int32),
        "steps": steps,
        "firsts": np.arange(5).reshape(5, *(1,) * len(groups), 1) * np.ones(shape, np.int32) == 0,
        "mask": steps[0],
        "lengths": steps.sum(0).astype(np.int32),
    }


def value_and_gradient(name: str, groups: tuple[int, ...]) -> Any:
    loss, differentiated = CASES[name]
    inputs = jax.tree.map(jnp.asarray, arrays(groups))

    def total(chosen: dict[str, jax.Array]) -> jax.Array:
        return loss(inputs | chosen)[0]

    return jax.value_and_grad(total)({name: inputs[name] for name in differentiated})


@pytest.mark.parametrize("groups", [(), (3,)], ids=["one group", "groups"])
@pytest.mark.parametrize("mode", TRACED)
@pytest.mark.parametrize("name", CASES)
def test_every_loss_traces_in_the_dtype_of_its_log_probabilities(name: str, mode: str, groups: tuple[int, ...]) -> None:
    with TRACED[mode]():
        found = jax.eval_shape(lambda: value_and_gradient(name, groups))
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(found))


@pytest.mark.parametrize(
    "name", [n if n in ("advantage", "dpo") else pytest.param(n, marks=pytest.mark.slow) for n in FEW]
)
def test_losses_run_without_jit_and_make_no_nan(name: str) -> None:
    plain = jax.jit(lambda: value_and_gradient(name, (3,)))()
    for mode in RUN.values():
        with mode():
            found = value_and_gradient(name, (3,))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-5), found, plain)


@pytest.mark.parametrize("mode", TRACED | RUN)
def test_what_the_losses_are_made_of(mode: str) -> None:
    x = arrays((3,))
    with (TRACED | RUN)[mode]():
        results = [
            losses.kl_k3(x["l"], x["l_reference"]),
            losses.trajectory_log_likelihood(x["l"], x["steps"]),
            losses.plackett_luce_weights(x["L"], temperature=jnp.ones(3, jnp.float32), mask=x["mask"]),
            losses.plackett_luce_weights(x["L"], temperature="auto"),
            *(losses.normalize_returns(x["L"], normalize=n, mask=x["mask"]) for n in ("center", "standardize", "rank")),
            *losses.generalized_advantage_estimation(
                x["rewards"], x["values"], x["targets"], ~x["steps"], x["firsts"], discount=0.9, gae_lambda=1
            ),
        ]
    assert all(y.dtype == np.float32 and bool(jnp.all(jnp.isfinite(y))) for y in results)
