"""HAEPO on advantages against the oracle, and against the policy gradient it is where the policies are equal."""

from __future__ import annotations

import functools
from typing import Any

import chex
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
COEFS = {"entropy_coef": 0.3, "kl_coef": 0.7}


def batch(seed: int, shape: tuple[int, ...], dtype: Any = np.float32) -> dict[str, Any]:
    """Segments that begin and end anywhere in their episodes, with steps masked here and there, at times all of them."""
    rng = np.random.default_rng(seed)
    behaviour = rng.normal(size=shape).astype(dtype)
    return {
        "log_probs": (behaviour + rng.choice([0.05, 0.5, 3.0]) * rng.normal(size=shape)).astype(dtype),
        "behaviour": behaviour,
        "advantages": (rng.choice([1e-2, 1.0, 1e4]) * rng.normal(size=shape)).astype(dtype),
        "is_first": rng.random(shape) < rng.choice([0.0, 0.3]),
        "mask": rng.random(shape) < rng.choice([0.0, 0.8, 1.0], p=[0.05, 0.45, 0.5]),
        "policy_entropy": rng.random(shape).astype(dtype),
        "policy_kl": rng.random(shape).astype(dtype),
        "min_advantage_std": dtype(rng.choice([0.0, 0.1])),
        "history_decay": dtype(rng.choice([0.0, 0.6, 0.9, 1.0])),
        "temperature": dtype(rng.choice([0.3, 1.0, 5.0])),
    }


def call(data: dict[str, Any], **coefs: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    names = {"behaviour": "behaviour_log_probs"}
    return losses.haepo_advantage_loss(**{names.get(name, name): value for name, value in data.items()}, **coefs)


run = jax.jit(functools.partial(call, **COEFS))
gradient = jax.jit(lambda data: jax.grad(lambda x: call(data | {"log_probs": x}, **COEFS)[0])(data["log_probs"]))
"""What is averaged is constant here, so the coefficients add nothing to it."""


@pytest.mark.parametrize("shape", SHAPES)
@oracle.SOME
@given(seed=SEEDS)
def test_loss_and_metrics_equal_the_oracle(shape: tuple[int, ...], seed: int) -> None:
    data = batch(seed, shape)
    loss, metrics = run(data)
    expected = oracle.haepo_advantage(**data, **COEFS)
    # Equal scores but for rounding have no rank, here or there.
    near = np.abs(np.float64(data["log_probs"]) - data["behaviour"])[data["mask"]].max(initial=0) > 1e-6
    assert near or not data["mask"].any()
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-4, atol=1e-4)
    if data["mask"].all():  # else credits of masked members tie only up to rounding
        oracle.close(metrics, expected, rtol=1e-4, atol=1e-4)
    metrics, expected = ({k: v for k, v in x.items() if k != "alignment"} for x in (metrics, expected))
    oracle.close(metrics, expected, rtol=1e-4, atol=1e-4)


def test_gradient_equals_finite_differences() -> None:
    with jax.enable_x64(True):
        data = batch(3, (5, 2, 3), np.float64)
        rng = np.random.default_rng(0)
        data |= {"history_decay": 0.8, "temperature": 0.7, "is_first": rng.random((5, 2, 3)) < 0.3}
        data |= {"log_probs": data["behaviour"] + 0.3 * rng.normal(size=(5, 2, 3)), "mask": rng.random((5, 2, 3)) < 0.8}
        assert data["is_first"][1:].any() and not data["mask"].all()
        oracle.check_gradient(lambda x: call(data | {"log_probs": x}, **COEFS)[0], data["log_probs"])
        loss = run(data)[0]
    expected = oracle.haepo_advantage(**data, **COEFS)["loss"]
    np.testing.assert_allclose(loss, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("tau", [0.3, 30.0])
def test_at_equal_policies_it_is_the_policy_gradient_with_a_group_baseline(decay: float, tau: float) -> None:
    """Whatever the decay, the temperature and the ends of the episodes, where those of a group coincide: a member's
    step counts with its advantage less the mean of the others'."""
    rng = np.random.default_rng(1)
    T, G, K = 6, 2, 5
    data = batch(0, (T, G, K), np.float64) | {"history_decay": decay, "temperature": tau, "mask": np.ones((T, G, K))}
    advantages = rng.normal(size=(T, G, K))
    first = np.broadcast_to(rng.random((T, G, 1)) < 0.4, (T, G, K))
    assert first[1:].any() and not first.all()
    with jax.enable_x64(True):
        grad = gradient(data | {"log_probs": data["behaviour"], "advantages": advantages, "is_first": first})
    standard = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    expected = np.zeros((T, G, K))
    for t, g, k in np.ndindex(T, G, K):
        others = [standard[t, g, j] for j in range(K) if j != k]
        expected[t, g, k] = -(standard[t, g, k] - np.mean(others)) / standard.size
    # A_k less the mean of the others is K / (K - 1) (A_k less the mean of all).
    np.testing.assert_allclose(
        expected, -K / (K - 1) * (standard - standard.mean(-1, keepdims=True)) / standard.size, rtol=1e-9, atol=1e-15
    )
    np.testing.assert_allclose(grad, expected, rtol=1e-9, atol=1e-14)


def test_at_equal_policies_members_of_other_episodes_are_a_baseline_too() -> None:
    """Where a member's episode ends before the others', its own part is still its advantage; what the others give is
    their credits along its history, which its action cannot change."""
    rng = np.random.default_rng(2)
    T, K, decay = 6, 4, 0.8
    data = batch(0, (T, K), np.float64) | {"history_decay": decay, "mask": np.ones((T, K), bool)}
    advantages, first = rng.normal(size=(T, K)), rng.random((T, K)) < 0.4
    with jax.enable_x64(True):
        grad = gradient(data | {"log_probs": data["behaviour"], "advantages": advantages, "is_first": first})
    standard = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    for t, k in np.ndindex(T, K):
        own, others, weight = 0.0, 0.0, 1.0
        for u in range(t, T):
            if u > t and first[u, k]:
                break
            credits = [
                standard[u, j] - (decay * standard[u + 1, j] if u + 1 < T and not first[u + 1, j] else 0.0)
                for j in range(K)
            ]
            own += weight * credits[k]
            others += weight * np.mean([credits[j] for j in range(K) if j != k])
            weight *= decay
        np.testing.assert_allclose(own, standard[t, k], rtol=1e-9)
        np.testing.assert_allclose(grad[t, k], -(own - others) / (T * K), rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e30])
def test_what_is_masked_does_not_matter(junk: float) -> None:
    data = batch(4, (7, 4)) | {"mask": np.random.default_rng(0).random((7, 4)) < 0.7}
    names = ("log_probs", "behaviour", "advantages", "policy_entropy", "policy_kl")
    spoilt = data | {name: np.where(data["mask"], data[name], np.float32(junk)) for name in names}
    chex.assert_trees_all_equal(run(spoilt), run(data))
    np.testing.assert_array_equal(gradient(spoilt), gradient(data))
    assert np.all(np.asarray(gradient(data))[~data["mask"]] == 0) and np.any(np.asarray(gradient(data)) != 0)


def test_history_and_credit_stop_at_the_start_of_an_episode() -> None:
    """A step moves the weights up to the end of its own episode, and an advantage counts for no step before it."""
    data = batch(5, (6, 3)) | {
        "history_decay": np.float32(0.9), "is_first": np.arange(6)[:, None] == 3, "mask": np.ones((6, 3), bool),
    }  # fmt: skip
    data["is_first"] = np.broadcast_to(data["is_first"], (6, 3))
    # Two episodes in one segment are the same as two segments, each with a group of its own.
    side = {k: (np.stack([v[:3], v[3:]], 1) if np.ndim(v) == 2 else v) for k, v in data.items()}
    chex.assert_trees_all_close(run(data), run(side), rtol=1e-5, atol=1e-6)
    grad, apart = np.asarray(gradient(data)), np.asarray(gradient(side))
    np.testing.assert_allclose(grad, np.concatenate([apart[:, 0], apart[:, 1]]), rtol=1e-4, atol=1e-7)
    whole = gradient(data | {"is_first": np.zeros((6, 3), bool)})
    assert np.abs(grad - whole)[:3].max() > 1e-3


def test_without_history_every_step_is_for_itself() -> None:
    data = batch(6, (5, 2, 3)) | {"history_decay": np.float32(0)}
    chex.assert_trees_all_equal(run(data), run(data | {"is_first": np.ones((5, 2, 3), bool)}))


@pytest.mark.parametrize("gap", [3.0, 30.0])
def test_a_group_whose_weights_have_collapsed_teaches_nothing(gap: float) -> None:
    """The other group still does: tau bounds how far one is moved, and a small one ends there soon."""
    data = batch(7, (4, 2, 3)) | {"mask": np.ones((4, 2, 3), bool), "is_first": np.zeros((4, 2, 3), bool)}
    shift = np.zeros((4, 2, 3), np.float32)
    shift[:, 0, 1] = gap
    data |= {"log_probs": data["behaviour"] + shift, "temperature": np.float32(0.1)}
    grad = np.abs(np.asarray(gradient(data)))
    assert grad[:, 0].max() < 1e-8 and grad[:, 1].max() > 1e-2
    assert np.abs(np.asarray(gradient(data | {"temperature": np.float32(100.0)})))[:, 0].max() > 1e-2


def test_the_unit_of_advantage_does_not_matter_and_equal_ones_give_zero() -> None:
    data = batch(8, (7, 4)) | {"mask": np.ones((7, 4), bool)}
    data["advantages"] = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    expected = float(run(data)[1]["objective"])
    assert abs(expected) > 1e-3
    for scaled in (1e4 * data["advantages"], 3 + data["advantages"]):
        np.testing.assert_allclose(run(data | {"advantages": scaled})[1]["objective"], expected, rtol=1e-4, atol=1e-5)
    equal = data | {"advantages": np.full((7, 4), 0.1, np.float32)}
    assert np.all(np.asarray(gradient(equal)) == 0)


def test_scalar_regularisers_weigh_what_they_are_given() -> None:
    data = batch(9, (5, 2, 3)) | {"mask": np.ones((5, 2, 3), bool)}
    loss, metrics = run(data | {"policy_entropy": np.float32(0.25), "policy_kl": np.float32(0.5)})
    np.testing.assert_allclose([metrics["entropy"], metrics["kl"]], [0.25, 0.5], rtol=1e-6)
    np.testing.assert_allclose(loss, -metrics["objective"] - 0.3 * 0.25 + 0.7 * 0.5, rtol=1e-5)


def test_no_gradient_reaches_what_is_constant() -> None:
    data = batch(10, (5, 2, 3)) | {"mask": np.ones((5, 2, 3), bool)}
    names = ("behaviour", "advantages", "temperature", "history_decay")
    oracle.check_constants(lambda x: call(data | x)[0], {name: data[name] for name in names})


def test_hyperparameters_may_be_traced_and_vmapped() -> None:
    data = batch(11, (5, 2, 3)) | {"mask": np.ones((5, 2, 3), bool)}
    f = jax.jit(lambda x: call(data | {"history_decay": x, "temperature": x + 0.1}, entropy_coef=x, kl_coef=x)[0])
    values = jnp.array([0.0, 0.5, 1.0])
    np.testing.assert_allclose(jax.jit(jax.vmap(f))(values), [f(x) for x in values], rtol=1e-5, atol=1e-6)
