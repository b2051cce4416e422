"""DPO's loss against the oracle and an example worked by hand."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haepo_jax import losses
from tests.losses import losses_oracle as oracle


def batch(seed: int, shape: tuple[int, ...], dtype: Any = np.float32) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    ties = rng.random() < 0.5
    return {
        "log_likelihood": (5 * rng.normal(size=shape)).astype(dtype),
        "returns": (rng.integers(0, 3, shape) if ties else rng.normal(size=shape)).astype(dtype),
        "mask": rng.random(shape) < rng.choice([0.2, 0.7, 1.0]),
        "reference": (5 * rng.normal(size=shape)).astype(dtype),
        "policy_entropy": rng.random(shape[:-1]).astype(dtype),
        "beta": dtype(rng.choice([0.05, 0.5])),
        "entropy_coef": dtype(rng.random()),
    }


def call(data: dict[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
    return losses.dpo_loss(
        data["log_likelihood"],
        data["returns"],
        reference_log_likelihood=data["reference"],
        **{k: data[k] for k in ("mask", "beta", "entropy_coef", "policy_entropy")},
    )


compiled = jax.jit(call)


@oracle.SOME
@given(seed=st.integers(0, 2**31), shape=st.sampled_from([(5,), (3, 4), (2, 2, 3)]))
def test_loss_and_metrics_equal_the_oracle(seed: int, shape: tuple[int, ...]) -> None:
    data = batch(seed, shape)
    loss, metrics = compiled(data)
    expected = oracle.dpo(**data)
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-4, atol=1e-5)
    oracle.close(metrics, expected, rtol=1e-4, atol=1e-5)


def test_given_preferences_are_groups_of_two() -> None:
    """Rafailov 2023, eq. 7, over N pairs, written out."""
    chosen, rejected, chosen_reference, rejected_reference = np.random.default_rng(0).normal(size=(4, 6))
    margins = 0.3 * ((chosen - chosen_reference) - (rejected - rejected_reference))
    loss, metrics = losses.dpo_loss(
        jnp.stack([chosen, rejected], axis=-1),
        jnp.broadcast_to(jnp.array([1, 0]), (6, 2)),
        reference_log_likelihood=jnp.stack([chosen_reference, rejected_reference], axis=-1),
        beta=0.3,
    )
    np.testing.assert_allclose(loss, np.mean(np.log1p(np.exp(-margins))), rtol=1e-5)
    assert metrics["pairs"] == 6


def test_by_hand() -> None:
    # Log-ratios to the reference are 2, 0 and -1; returns 5, 5 and 1: two pairs, (0, 2) and (1, 2), as 0 and 1 tie.
    # Margins with beta 0.5: 0.5 (2 + 1) = 1.5 and 0.5 (0 + 1) = 0.5. The loss is the mean of log(1 + exp(-margin)):
    # (log(1 + e^-1.5) + log(1 + e^-0.5)) / 2 = (0.2014133 + 0.4740770) / 2 = 0.3377451.
    loss, metrics = losses.dpo_loss(
        jnp.array([-1.0, -4.0, -6.0]),
        jnp.array([5, 5, 1]),
        reference_log_likelihood=jnp.array([-3.0, -4.0, -5.0]),
        beta=0.5,
    )
    np.testing.assert_allclose(loss, 0.3377451, rtol=1e-6)
    expected = {
        "loss": 0.3377451,
        "objective": -0.3377451,
        "accuracy": 1.0,
        "margin": 1.0,
        "pairs": 2.0,
        "entropy": 0.0,
    }
    oracle.close(metrics, expected, atol=1e-6)
    # On the reference itself every margin is 0: the loss is log 2, whatever the returns, and no pair is ranked yet.
    at_reference = losses.dpo_loss(
        jnp.array([-1.0, -2.0]), jnp.array([0.0, 1.0]), reference_log_likelihood=jnp.array([-1.0, -2.0])
    )
    np.testing.assert_allclose(at_reference[0], math.log(2), rtol=1e-6)
    assert at_reference[1]["accuracy"] == 0


@pytest.mark.parametrize("returns", [[1e12] * 4, [1.0, 2.0, 3.0, 4.0]])
def test_without_a_pair_loss_and_gradient_are_zero(returns: list[float]) -> None:
    mask = [1, 1, 1, 1] if len(set(returns)) == 1 else [0, 0, 1, 0]
    f = lambda x: losses.dpo_loss(  # noqa: E731
        x,
        jnp.array(returns),
        reference_log_likelihood=jnp.zeros(4),
        mask=jnp.array(mask),
        entropy_coef=0.5,
        policy_entropy=x.sum(),
    )[0]
    loss, grad = jax.value_and_grad(f)(jnp.arange(4.0))
    assert loss == 0 and np.all(np.asarray(grad) == 0)


def test_returns_that_differ_by_rounding_are_no_pair() -> None:
    returns = jnp.array([1.0, 1.0 + 2**-23, 1.0 - 2**-22, 1.001])
    metrics = losses.dpo_loss(jnp.zeros(4), returns, reference_log_likelihood=jnp.zeros(4))[1]
    assert metrics["pairs"] == 3


def test_gradient_equals_finite_differences() -> None:
    with jax.enable_x64(True):
        data = batch(5, (3, 4), np.float64) | {"mask": np.arange(12).reshape(3, 4) < 11}
        for name in ("log_likelihood", "policy_entropy"):
            oracle.check_gradient(lambda x: call(data | {name: x})[0], data[name])  # noqa: B023
        names = ("reference", "returns", "beta", "entropy_coef")
        oracle.check_constants(lambda x: call(data | x)[0], {name: data[name] for name in names})


def test_hyperparameters_may_be_traced_and_vmapped() -> None:
    data = batch(6, (3, 4))
    f = lambda x: call(data | {"beta": x, "entropy_coef": x})[0]  # noqa: E731
    values = [0.05, 0.2, 0.5]
    np.testing.assert_allclose(jax.jit(jax.vmap(f))(jnp.array(values)), [f(v) for v in values], rtol=1e-5)
