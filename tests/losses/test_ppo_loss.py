"""Generalized advantage estimation and PPO's loss against the oracle, and against rlax where it can be installed."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haepo_jax import losses
from tests.losses import losses_oracle as oracle

SEEDS = st.integers(0, 2**31)


def segment(seed: int, shape: tuple[int, int] = (9, 3), dtype: Any = np.float32) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    rewards, values, bootstrap = (rng.normal(size=shape).astype(dtype) for _ in range(3))
    terminated = rng.random(shape) < 0.2
    truncated = (rng.random(shape) < 0.2) & ~terminated
    # Where no episode ends, the observation that follows is the next one acted on.
    bootstrap[:-1] = np.where(terminated | truncated, bootstrap, np.roll(values, -1, 0))[:-1]
    return dict(rewards=rewards, values=values, bootstrap_values=bootstrap, terminated=terminated, truncated=truncated)


gae = jax.jit(losses.generalized_advantage_estimation)


@oracle.SOME
@given(seed=SEEDS, discount=st.sampled_from([0.0, 0.9, 1.0]), lam=st.sampled_from([0.0, 0.95, 1.0]))
def test_gae_equals_the_oracle(seed: int, discount: float, lam: float) -> None:
    data = segment(seed)
    expected = oracle.gae(*data.values(), discount, lam)
    actual = gae(**data, discount=discount, gae_lambda=lam)
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(actual[1], expected[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_gae_equals_rlax(seed: int) -> None:
    rlax = pytest.importorskip("rlax", exc_type=ImportError)
    data = segment(seed)
    advantages, _ = gae(**data, discount=0.9, gae_lambda=0.8)
    # rlax takes one array of values: a truncation becomes an end whose reward includes the final value.
    rewards = data["rewards"] + 0.9 * data["truncated"] * data["bootstrap_values"]
    discounts = np.where(data["terminated"] | data["truncated"], 0, np.float32(0.9)).astype(np.float32)
    for i in range(3):
        values = np.append(data["values"][:, i], data["bootstrap_values"][-1, i])
        expected = rlax.truncated_generalized_advantage_estimation(
            jnp.asarray(rewards[:, i]), jnp.asarray(discounts[:, i]), 0.8, jnp.asarray(values)
        )
        np.testing.assert_allclose(advantages[:, i], expected, rtol=1e-5, atol=1e-5)


def test_gae_tells_termination_from_truncation_by_hand() -> None:
    arguments = dict(
        rewards=jnp.array([1.0, 1.0]), values=jnp.array([2.0, 4.0]), bootstrap_values=jnp.array([10.0, 6.0])
    )
    no, first = jnp.array([False, False]), jnp.array([True, False])
    run = functools.partial(losses.generalized_advantage_estimation, **arguments, discount=0.5, gae_lambda=0.5)
    # The last step: 1 + 0.5 * 6 - 4 = 0. The first: 1 - 2 where it terminates, 1 + 0.5 * 10 - 2 where it is cut off.
    np.testing.assert_allclose(run(terminated=first, truncated=no)[0], [-1.0, 0.0])
    np.testing.assert_allclose(run(terminated=no, truncated=first)[0], [4.0, 0.0])
    np.testing.assert_allclose(run(terminated=no, truncated=first)[1], [6.0, 4.0])


def test_gae_does_not_read_the_value_after_the_end_and_has_no_gradient() -> None:
    data = segment(1)
    dirty = data | {"bootstrap_values": np.where(data["terminated"], np.nan, data["bootstrap_values"])}
    run = functools.partial(losses.generalized_advantage_estimation, discount=0.9, gae_lambda=0.9)
    np.testing.assert_array_equal(run(**dirty)[0], run(**data)[0])
    grad = jax.grad(lambda v: run(**(data | {"values": v}))[1].sum())(data["values"])
    assert np.all(np.asarray(grad) == 0)


def batch(seed: int, shape: tuple[int, ...], dtype: Any = np.float32) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    behaviour, values = rng.normal(size=shape), rng.normal(size=shape)
    return {
        "log_probs": (behaviour + 0.3 * rng.normal(size=shape)).astype(dtype),
        "behaviour": behaviour.astype(dtype),
        "advantages": (rng.choice([0.1, 10.0]) * rng.normal(size=shape) + rng.choice([0.0, 5.0])).astype(dtype),
        "values": values.astype(dtype),
        "targets": (values + rng.normal(size=shape)).astype(dtype),
        "behaviour_values": (values + 0.5 * rng.normal(size=shape)).astype(dtype),
        "policy_entropy": rng.random(shape).astype(dtype),
        "policy_kl": rng.random(shape).astype(dtype),
        "mask": rng.random(shape) < rng.choice([0.0, 0.5, 1.0], p=[0.1, 0.4, 0.5]),
        "clip_eps": dtype(rng.choice([0.1, 0.3])),
        "value_coef": dtype(rng.random()),
        "entropy_coef": dtype(rng.random()),
        "kl_coef": dtype(rng.random()),
        "min_advantage_std": dtype(rng.choice([0.0, 0.3])),
    }


def call(data: dict[str, Any], **options: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    return losses.ppo_loss(
        data["log_probs"],
        data["behaviour"],
        data["advantages"],
        values=data["values"],
        value_targets=data["targets"],
        behaviour_values=data["behaviour_values"],
        policy_entropy=data["policy_entropy"],
        policy_kl=data["policy_kl"],
        mask=data["mask"],
        clip_eps=data["clip_eps"],
        value_coef=data["value_coef"],
        entropy_coef=data["entropy_coef"],
        kl_coef=data["kl_coef"],
        min_advantage_std=data["min_advantage_std"],
        **options,
    )


@functools.cache
def compiled(**options: Any) -> Any:
    return jax.jit(functools.partial(call, **options))


@pytest.mark.parametrize("normalize_advantages", [True, False])
@pytest.mark.parametrize("value_clip_eps", [None, 0.2])
@oracle.SOME
@given(seed=SEEDS)
def test_loss_and_metrics_equal_the_oracle(normalize_advantages: bool, value_clip_eps: float | None, seed: int) -> None:
    data = batch(seed, (3, 4) if normalize_advantages else (6,))
    options: dict[str, Any] = {"normalize_advantages": normalize_advantages, "value_clip_eps": value_clip_eps}
    loss, metrics = compiled(**options)(data)
    expected = oracle.ppo(**data, **options)
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-4, atol=1e-4)
    oracle.close(metrics, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value_clip_eps", [None, 0.2])
def test_gradient_equals_finite_differences(value_clip_eps: float | None) -> None:
    with jax.enable_x64(True):
        data = batch(3, (3, 4), np.float64) | {"mask": np.arange(12).reshape(3, 4) < 10}
        loss = lambda x: call(data | x, value_clip_eps=value_clip_eps)[0]  # noqa: E731
        for name in ("log_probs", "values", "policy_entropy", "policy_kl"):
            oracle.check_gradient(lambda x: loss({name: x}), data[name])  # noqa: B023
        coefs = ("clip_eps", "value_coef", "entropy_coef", "kl_coef")
        names = ("behaviour", "advantages", "targets", "behaviour_values", *coefs)
        oracle.check_constants(loss, {name: data[name] for name in names})


@pytest.mark.parametrize("seed", range(5))
def test_clipped_surrogate_equals_rlax(seed: int) -> None:
    rlax = pytest.importorskip("rlax", exc_type=ImportError)
    data = batch(seed, (12,)) | {"mask": np.ones(12, bool)}

    def ours(log_probs: jax.Array) -> jax.Array:
        return -call(data | {"log_probs": log_probs, "value_coef": 0.0}, normalize_advantages=False)[1]["objective"]

    def ours_loss(log_probs: jax.Array) -> jax.Array:
        return call(
            data | {"log_probs": log_probs, "value_coef": 0.0, "entropy_coef": 0.0, "kl_coef": 0.0},
            normalize_advantages=False,
        )[0]

    def theirs(log_probs: jax.Array) -> jax.Array:
        ratios = jnp.exp(log_probs - data["behaviour"])
        return rlax.clipped_surrogate_pg_loss(ratios, jnp.asarray(data["advantages"]), float(data["clip_eps"]))

    current = jnp.asarray(data["log_probs"])
    np.testing.assert_allclose(ours(current), theirs(current), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.grad(ours_loss)(current), jax.grad(theirs)(current), rtol=1e-5, atol=1e-6)


def test_equal_advantages_give_no_policy_gradient() -> None:
    data = batch(4, (12,)) | {"mask": np.ones(12, bool), "advantages": np.full(12, 1e12, np.float32)}
    assert np.all(np.asarray(jax.grad(lambda x: call(data | {"log_probs": x})[0])(data["log_probs"])) == 0)


def test_hyperparameters_may_be_traced_and_vmapped() -> None:
    data = batch(5, (12,)) | {"mask": np.ones(12, bool)}
    names = ("clip_eps", "value_coef", "entropy_coef", "kl_coef")
    f = lambda x: call(data | dict.fromkeys(names, x), value_clip_eps=x)[0]  # noqa: E731
    values = [0.05, 0.2, 0.5]
    np.testing.assert_allclose(jax.jit(jax.vmap(f))(jnp.array(values)), [f(v) for v in values], rtol=1e-5)
    g = lambda x: losses.generalized_advantage_estimation(**segment(0), discount=x, gae_lambda=x)[0]  # noqa: E731
    np.testing.assert_allclose(jax.vmap(g)(jnp.array(values)), [g(v) for v in values], rtol=1e-5, atol=1e-6)


def test_the_value_loss_may_have_a_mask_of_its_own() -> None:
    rng = np.random.default_rng(0)
    logs = [rng.normal(size=6).astype(np.float32) for _ in range(3)]
    mask, fitted = np.array([1, 0, 0, 1, 1, 0], bool), np.array([1, 1, 0, 1, 0, 1], bool)
    values, targets = (np.where(fitted, rng.normal(size=6), np.nan).astype(np.float32) for _ in range(2))
    loss, metrics = losses.ppo_loss(*logs, values=values, value_targets=targets, mask=mask, value_mask=fitted)
    squares = (values - targets)[fitted] ** 2
    np.testing.assert_allclose(metrics["value_loss"], squares.mean() / 2, rtol=1e-5)
    np.testing.assert_allclose(
        metrics["explained_variance"], 1 - np.var((targets - values)[fitted]) / np.var(targets[fitted]), rtol=1e-4
    )
    np.testing.assert_allclose(loss, squares.mean() / 4 - metrics["objective"], rtol=1e-5)
    alone = losses.ppo_loss(*logs, values=np.zeros(6), value_targets=np.zeros(6), mask=mask)[1]
    np.testing.assert_allclose(metrics["objective"], alone["objective"], rtol=1e-6)
