"""GRPO's loss against the oracle and an example worked by hand."""

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
    behaviour = rng.normal(size=shape)
    near = lambda: (behaviour + 0.3 * rng.normal(size=shape)).astype(dtype)  # noqa: E731
    ties = rng.random() < 0.3
    return {
        "log_probs": near(),
        "behaviour": behaviour.astype(dtype),
        "returns": (rng.integers(0, 2, shape[1:]) if ties else 10 * rng.normal(size=shape[1:])).astype(dtype),
        "mask": np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)) < rng.integers(0, 2 * shape[0], shape[1:]),
        "reference": near(),
        "policy_entropy": rng.random(shape).astype(dtype),
        "clip_eps": dtype(rng.choice([0.1, 0.3])),
        "kl_coef": dtype(rng.random()),
        "entropy_coef": dtype(rng.random()),
    }


VARIANTS: dict[str, dict[str, Any]] = {
    "dr_grpo": {"normalize": "center", "average": "constant"},
    "dr_grpo of a given length": {"normalize": "center", "average": "constant", "max_length": 7},
    "dapo": {"average": "step", "clip_eps_high": 0.4},
    "gspo": {"ratio": "trajectory"},
    "all": {"normalize": "center", "average": "step", "ratio": "trajectory", "clip_eps_high": 0.05},
}


def call(data: dict[str, Any], **options: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    names = ("clip_eps", "kl_coef", "entropy_coef", "policy_entropy")
    return losses.grpo_loss(
        *(data[k] for k in ("log_probs", "behaviour", "returns", "mask")),
        reference_log_probs=data["reference"],
        **{k: data[k] for k in names},
        **options,
    )


compiled = jax.jit(call)


@pytest.mark.parametrize("with_reference", [True, False])
@oracle.SOME
@given(seed=st.integers(0, 2**31), shape=st.sampled_from([(5, 4), (4, 2, 3)]))
def test_loss_and_metrics_equal_the_oracle(with_reference: bool, seed: int, shape: tuple[int, ...]) -> None:
    data = batch(seed, shape)
    data["reference"] = data["reference"] if with_reference else None
    loss, metrics = compiled(data)
    expected = oracle.grpo(**data)
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-4, atol=2e-5)
    oracle.close(metrics, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@oracle.SOME
@given(seed=st.integers(0, 2**31), shape=st.sampled_from([(5, 4), (4, 2, 3)]))
def test_variants_equal_the_oracle(variant: str, seed: int, shape: tuple[int, ...]) -> None:
    data, options = batch(seed, shape), VARIANTS[variant]
    loss, metrics = call(data, **options)
    expected = oracle.grpo(**data, **options)
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-4, atol=2e-5)
    oracle.close(metrics, expected, rtol=1e-4, atol=2e-5)


def test_gspo_and_haepo_are_one_step_apart() -> None:
    """As grpo_loss says: of equal lengths n, HAEPO's weights at tau = n are GSPO's ratios over their sum."""
    data = batch(3, (5, 4))
    log_ratio = data["log_probs"] - data["behaviour"]
    ratios = np.exp(log_ratio.mean(0))
    weights = losses.plackett_luce_weights(log_ratio.sum(0), temperature=5.0)
    np.testing.assert_allclose(weights, ratios / ratios.sum(), rtol=1e-5)


def test_by_hand() -> None:
    # Two trajectories with returns 3 and 1: mean 2, population std 1, so the advantages are +1 and -1.
    # The first lives for two steps with ratios 1.5 and 0.5: (min(1.5, 1.2) + min(0.5, 0.8)) / 2 = 0.85.
    # The second lives for one step with ratio 0.5: min(-0.5, -0.8) = -0.8. Objective: (0.85 - 0.8) / 2 = 0.025.
    # The reference is twice as likely at the first step of the first one and equal elsewhere: 2 - log 2 - 1 there, so
    # the KL is half (its two steps) of half (two trajectories) of 1 - log 2. Steps outside [0.8, 1.2]: all three.
    ratios = jnp.array([[1.5, 0.5], [0.5, 9.9]])
    behaviour = jnp.full((2, 2), -1.0)
    current = behaviour + jnp.log(ratios)
    reference = current + jnp.array([[math.log(2), 0.0], [0.0, 5.0]])
    mask = jnp.array([[1, 1], [1, 0]])
    loss, metrics = losses.grpo_loss(
        current, behaviour, jnp.array([3, 1]), mask, reference_log_probs=reference, kl_coef=0.04
    )
    kl = (1 - math.log(2)) / 4
    expected = {"objective": 0.025, "kl": kl, "loss": 0.04 * kl - 0.025, "clip_fraction": 1.0, "entropy": 0.0}
    oracle.close(metrics, expected, atol=1e-6)
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-4)


def test_gradient_equals_finite_differences() -> None:
    with jax.enable_x64(True):
        data = batch(5, (4, 2, 3), np.float64)
        for name in ("log_probs", "policy_entropy"):
            oracle.check_gradient(lambda x: call(data | {name: x})[0], data[name])  # noqa: B023
        names = ("behaviour", "returns", "reference", "clip_eps", "kl_coef", "entropy_coef")
        oracle.check_constants(lambda x: call(data | x)[0], {name: data[name] for name in names})


def test_hyperparameters_may_be_traced_and_vmapped() -> None:
    data = batch(6, (5, 4))
    f = lambda x: call(data | dict.fromkeys(("clip_eps", "kl_coef", "entropy_coef"), x))[0]  # noqa: E731
    values = [0.05, 0.2, 0.5]
    batched = jax.jit(jax.vmap(f))(jnp.array(values))
    np.testing.assert_allclose(batched, [f(v) for v in values], rtol=1e-5, atol=1e-6)
