"""Per-decision HAEPO against the oracle, and against the estimators it becomes at its limits."""

from __future__ import annotations

import functools
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

SHAPES = ((7, 4), (5, 2, 3))
SEEDS = st.integers(0, 2**31)


def episodes(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Masks of trajectories that start alive and end, some at the horizon, some masked altogether."""
    lengths = rng.integers(0, 2 * shape[0], shape[1:])
    return np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)) < lengths


def batch(seed: int, shape: tuple[int, ...], dtype: Any = np.float32) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    scale = rng.choice([0.05, 0.5, 3.0])
    behaviour = rng.normal(size=shape).astype(dtype)
    near = lambda: (behaviour + scale * rng.normal(size=shape)).astype(dtype)  # noqa: E731
    rewards = rng.choice([1e-3, 1.0, 1e4]) * rng.normal(size=shape)
    rewards = rng.integers(0, 2, shape) if rng.random() < 0.3 else rewards
    return {
        "log_probs": near(),
        "behaviour": behaviour,
        "rewards": np.asarray(rewards, dtype),
        "mask": episodes(rng, shape),
        "reference": near(),
        "policy_entropy": rng.random(shape).astype(dtype),
        "policy_kl": rng.random(shape).astype(dtype),
        "history_decay": dtype(rng.choice([0.3, 0.9, 1.0])),
        "temperature": dtype(rng.choice([0.5, 1.0, 5.0])),
    }


def call(data: dict[str, Any], **options: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    return losses.haepo_prefix_loss(
        data["log_probs"],
        data["behaviour"],
        data["rewards"],
        data["mask"],
        history_decay=data["history_decay"],
        reference_log_probs=data["reference"],
        policy_entropy=data["policy_entropy"],
        policy_kl=data["policy_kl"],
        **({"temperature": data["temperature"]} | options),
    )


@functools.cache
def compiled(**options: Any) -> Any:
    return jax.jit(functools.partial(call, **options))


OPTIONS = [
    {"entropy": "policy", "kl": "policy"},
    {"entropy": "weights", "kl": "weights"},
    {"entropy": "policy", "kl": "weights", "temperature": "auto"},
    {"entropy": "weights", "kl": "policy", "temperature": "auto"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o.values()))
@oracle.SOME
@given(seed=SEEDS, shape=st.sampled_from(SHAPES))
def test_loss_and_metrics_equal_the_oracle(options: dict[str, Any], seed: int, shape: tuple[int, ...]) -> None:
    data = batch(seed, shape)
    loss, metrics = compiled(entropy_coef=0.3, kl_coef=0.7, **options)(data)
    expected = oracle.haepo_prefix(**(data | options), entropy_coef=0.3, kl_coef=0.7)
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-4, atol=1e-4)
    oracle.close(metrics, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", OPTIONS[:2], ids=lambda o: "-".join(o.values()))
def test_gradient_equals_finite_differences(options: dict[str, Any]) -> None:
    with jax.enable_x64(True):
        data = batch(3, (5, 2, 3), np.float64)
        data["log_probs"] = data["behaviour"] + 0.3 * np.random.default_rng(0).normal(size=(5, 2, 3))
        data["mask"] = np.arange(5)[:, None, None] < np.array([[5, 3, 1], [4, 0, 5]])
        f = lambda x: call(data | {"log_probs": x}, entropy_coef=0.3, kl_coef=0.7, **options)[0]  # noqa: E731
        oracle.check_gradient(f, data["log_probs"])
        loss = compiled(entropy_coef=0.3, kl_coef=0.7, **options)(data)[0]
    expected = oracle.haepo_prefix(**(data | options), entropy_coef=0.3, kl_coef=0.7)["loss"]
    np.testing.assert_allclose(loss, expected, rtol=1e-11, atol=1e-12)


@jax.jit
def gradient(log_probs: Any, behaviour: Any, rewards: Any, mask: Any, decay: Any, tau: Any) -> jax.Array:
    options = {"history_decay": decay, "temperature": tau}
    return jax.grad(lambda x: losses.haepo_prefix_loss(x, behaviour, rewards, mask, **options)[0])(log_probs)


@pytest.mark.parametrize("decay", [0.4, 0.99, 1.0])
@pytest.mark.parametrize("tau", [1.0, 30.0])
def test_at_equal_weights_it_is_reinforce_with_a_group_baseline(decay: float, tau: float) -> None:
    rng = np.random.default_rng(1)
    T, K = 6, 5
    mask = np.arange(T)[:, None] < np.array([6, 2, 4, 0, 6])
    rewards, log_probs = rng.normal(size=(T, K)), rng.normal(size=(T, K))
    with jax.enable_x64(True):
        grad = np.asarray(gradient(log_probs, log_probs, rewards, mask, decay, tau))
    valid = [0, 1, 2, 4]
    earned = np.where(mask, rewards, 0.0)
    credit = np.zeros((T, K))
    for t in range(T):
        for k in valid:
            for u in range(t, T):
                credit[t, k] += decay ** (u - t) * (earned[u, k] - np.mean([earned[u, j] for j in valid]))
    sigma = np.sqrt(np.mean(credit[mask] ** 2))
    np.testing.assert_allclose(-grad, np.where(mask, credit, 0) / (sigma * mask.sum()), rtol=1e-9, atol=1e-14)


def test_without_decay_it_is_weighted_per_decision_importance_sampling() -> None:
    rng = np.random.default_rng(2)
    T, K = 6, 4
    mask = np.arange(T)[:, None] < np.array([6, 2, 4, 5])
    rewards, behaviour = rng.normal(size=(T, K)), rng.normal(size=(T, K))
    with jax.enable_x64(True):
        values, estimates = [], []
        undecayed = jax.jit(functools.partial(losses.haepo_prefix_loss, history_decay=1.0))
        for shift in (0.0, 1.0):
            current = behaviour + shift * np.random.default_rng(3).normal(size=(T, K))
            loss, _ = undecayed(current, behaviour, rewards, mask)
            estimate, ratio = 0.0, np.ones(K)
            for t in range(T):
                earned = np.where(mask[t], rewards[t], 0.0)
                ratio = ratio * np.where(mask[t], np.exp(current[t] - behaviour[t]), 1.0)
                estimate += (ratio @ earned) / ratio.sum() - earned.mean()
            values.append(-float(loss))
            estimates.append(estimate)
    # On the behaviour policy itself both are 0; off it they differ by one factor, which no policy changes.
    np.testing.assert_allclose(values[0], 0, atol=1e-12)
    np.testing.assert_allclose(estimates[0], 0, atol=1e-12)
    credit = np.cumsum((np.where(mask, rewards, 0) - np.where(mask, rewards, 0).mean(1, keepdims=True))[::-1], 0)[::-1]
    factor = K / (math.sqrt(np.mean(credit[mask] ** 2)) * mask.sum())
    np.testing.assert_allclose(values[1], factor * estimates[1], rtol=1e-10)


@pytest.mark.parametrize("reward", [1e12, 0.1, -1 / 3])
def test_equal_rewards_give_exactly_zero(reward: float) -> None:
    data = batch(4, (7, 4)) | {"mask": np.ones((7, 4), bool), "rewards": np.full((7, 4), reward, np.float32)}
    arguments = (data["log_probs"], data["behaviour"], data["rewards"], data["mask"], np.float32(0.9), np.float32(1.0))
    assert float(compiled(**OPTIONS[0])(data)[0]) == 0 and np.all(np.asarray(gradient(*arguments)) == 0)


@pytest.mark.parametrize("unit", [1e-30, 1e-6, 1e6, 1e30])
def test_the_unit_of_reward_does_not_matter(unit: float) -> None:
    run = compiled(**OPTIONS[0])
    data = batch(5, (7, 4)) | {"rewards": np.float32(np.random.default_rng(0).integers(-4, 5, (7, 4)))}
    scaled = data | {"rewards": np.float32(data["rewards"] * unit)}
    expected = float(run(data)[0])
    assert abs(expected) > 1e-3
    np.testing.assert_allclose(run(scaled)[0], expected, rtol=1e-4)


def test_finished_trajectories_stay_and_absent_ones_do_not_count() -> None:
    # CartPole: everyone earns 1 while alive, so only the length differs; without the finished there is no gradient.
    mask = np.arange(5)[:, None] < np.array([5, 2, 0])
    zeros = np.zeros((5, 3), np.float32)
    grad = np.asarray(gradient(zeros, zeros, mask, mask, 0.99, 1.0))
    assert np.all(grad[:, 0] < 0) and np.all(grad[:2, 1] > 0)
    assert np.all(grad[:, 2] == 0) and np.all(grad[2:, 1] == 0)
    present = gradient(zeros[:, :2], zeros[:, :2], mask[:, :2], mask[:, :2], 0.99, 1.0)
    np.testing.assert_allclose(present, grad[:, :2], rtol=1e-6)


def test_scalar_regularisers_and_default_reference() -> None:
    data = batch(6, (5, 2, 3))
    _, metrics = compiled(**OPTIONS[0])(data | {"policy_entropy": np.float32(0.25), "policy_kl": np.float32(0.5)})
    np.testing.assert_allclose([metrics["entropy"], metrics["kl"]], [0.25, 0.5], rtol=1e-6)
    run = compiled(entropy_coef=0.3, kl_coef=0.7, **OPTIONS[1])
    default, named = run(data | {"reference": None}), run(data | {"reference": data["behaviour"]})
    np.testing.assert_array_equal(default[0], named[0])
    assert float(default[0]) != float(run(data)[0])


def test_no_gradient_reaches_what_is_constant() -> None:
    data = batch(7, (5, 2, 3))
    options: dict[str, Any] = {"entropy": "weights", "kl": "weights", "entropy_coef": 1.0, "kl_coef": 1.0}
    names = ("behaviour", "rewards", "reference", "temperature", "history_decay")
    oracle.check_constants(lambda x: call(data | x, **options)[0], {name: data[name] for name in names})


def test_hyperparameters_may_be_traced_and_vmapped() -> None:
    data = batch(8, (5, 2, 3))
    f = jax.jit(lambda h, tau, c: call(data | {"history_decay": h}, temperature=tau, entropy_coef=c, kl_coef=c)[0])
    values = jnp.array([0.5, 0.9, 1.0])
    np.testing.assert_allclose(
        jax.jit(jax.vmap(f))(values, values, values), [f(v, v, v) for v in (0.5, 0.9, 1.0)], rtol=1e-5, atol=1e-6
    )
    run = compiled(**OPTIONS[0])
    per_group = run(data | {"temperature": jnp.array([1.0, 3.0])})[1]["objective"]
    parts = []
    for i, tau in enumerate((1.0, 3.0)):
        one = {k: (v[:, i] if np.ndim(v) == 3 else v) for k, v in data.items()}
        if one["mask"].any():
            parts.append(float(run(one | {"temperature": tau})[1]["objective"]))
    np.testing.assert_allclose(per_group, np.mean(parts), rtol=1e-5)
