"""V-trace and GePPO's clip range against float64 NumPy, written from the papers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haepo_jax import losses


def segment(seed: int, shape: tuple[int, int] = (9, 4)) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    draw = lambda scale=1.0: rng.normal(scale=scale, size=shape).astype(np.float32)  # noqa: E731
    terminated = rng.random(shape) < 0.2
    return {
        "log_ratio": draw(0.7), "rewards": draw(), "values": draw(), "bootstrap_values": draw(),
        "terminated": terminated, "truncated": ~terminated & (rng.random(shape) < 0.2),
    }  # fmt: skip


def correction(weights: Any, errors: Any, last: Any, start: int) -> float:
    """target - value at a step: weighted temporal-difference errors up to its episode's end; weights are (rho, gamma c)."""
    total, weight = 0.0, 1.0
    for t in range(start, len(errors)):
        total += weight * weights[0][t] * errors[t]
        weight *= weights[1][t]
        if last[t]:
            break
    return total


def oracle(s: dict[str, Any], gamma: float, lam: float, rho_bar: float, c_bar: float) -> tuple[np.ndarray, np.ndarray]:
    """Equation 1 as the sum that the paper writes, for every step anew; an episode's end ends the sum."""
    f = {name: np.asarray(x, np.float64) for name, x in s.items()}
    length, num = f["values"].shape
    targets, advantages = np.zeros((length, num)), np.zeros((length, num))
    for i in range(num):
        ratio = np.exp(f["log_ratio"][:, i])
        last = (f["terminated"][:, i] + f["truncated"][:, i]) > 0
        after = np.where(f["terminated"][:, i] > 0, 0, f["bootstrap_values"][:, i])
        weights = np.minimum(rho_bar, ratio), gamma * lam * np.minimum(c_bar, ratio)
        error = f["rewards"][:, i] + gamma * after - f["values"][:, i]

        for t in range(length):
            targets[t, i] = f["values"][t, i] + correction(weights, error, last, t)
            following = 0.0 if last[t] or t + 1 == length else correction(weights, error, last, t + 1)
            advantages[t, i] = error[t] + gamma * lam * following
    return advantages, targets


@pytest.mark.parametrize(("rho_bar", "c_bar", "lam"), [(1.0, 1.0, 1.0), (2.0, 0.5, 0.9), (0.0, 1.0, 0.5)])
def test_vtrace(rho_bar: float, c_bar: float, lam: float) -> None:
    s = segment(0)
    assert s["truncated"].any() and s["terminated"].any()
    found = jax.jit(lambda s: losses.vtrace(**s, discount=0.9, vtrace_lambda=lam, clip_rho=rho_bar, clip_c=c_bar))(s)
    for x, expected in zip(found, oracle(s, 0.9, lam, rho_bar, c_bar), strict=True):
        np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-5)


def test_vtrace_of_equal_policies_is_generalised_advantage_estimation() -> None:
    s = segment(1)
    s["log_ratio"] = np.zeros_like(s["log_ratio"])
    found = losses.vtrace(**s, discount=0.95, vtrace_lambda=0.8)
    del s["log_ratio"]
    expected = losses.generalized_advantage_estimation(**s, discount=0.95, gae_lambda=0.8)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_vtrace_casts_integer_rewards() -> None:
    arrays = {name: jnp.zeros(2) for name in ("log_ratio", "values", "bootstrap_values")}
    ends = {"terminated": jnp.array([False, True]), "truncated": jnp.zeros(2, bool)}
    assert losses.vtrace(rewards=jnp.array([1, 2]), **arrays, **ends, discount=1.0)[1].tolist() == [3.0, 2.0]


def test_vtrace_has_no_gradient_and_names_what_is_wrong() -> None:
    s = segment(2)
    total = lambda values: sum(map(jnp.sum, losses.vtrace(**{**s, "values": values}, discount=0.9)))  # noqa: E731
    assert not np.asarray(jax.grad(total)(jnp.asarray(s["values"]))).any()
    with pytest.raises(ValueError, match="vtrace: log_ratio must have shape"):
        losses.vtrace(**{**s, "log_ratio": s["log_ratio"][:2]}, discount=0.9)
    with pytest.raises(ValueError, match="vtrace: clip_rho must be at least 0"):
        losses.vtrace(**s, discount=0.9, clip_rho=-1.0)


def test_the_clip_of_geppo() -> None:
    """Queeney 2021, eq. 8: the ratio may move by eps from that of the policy before the update."""
    rng = np.random.default_rng(3)
    current, before, behaviour = (rng.normal(scale=0.4, size=40) for _ in range(3))
    advantage = rng.normal(size=40)
    ratio, centre = np.exp(current - behaviour), np.exp(before - behaviour)
    surrogate = np.minimum(ratio * advantage, np.clip(ratio, centre - 0.2, centre + 0.2) * advantage)
    assert (np.abs(centre - 1) > 0.2).mean() > 0.3
    zeros = np.zeros(40, np.float32)
    arrays = [np.float32(x) for x in (current, behaviour, advantage)]
    _, metrics = losses.ppo_loss(
        *arrays, values=zeros, value_targets=zeros, normalize_advantages=False, clip_around_log_probs=np.float32(before)
    )
    np.testing.assert_allclose(metrics["objective"], surrogate.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["clip_fraction"], (np.abs(ratio - centre) > 0.2).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["kl"], (np.exp(current - before) - 1 - (current - before)).mean(), rtol=1e-4)

    # At the policy before the update nothing is clipped, however old the experience, and every step has its gradient.
    def objective(x: jax.Array) -> jax.Array:
        loss = losses.ppo_loss(
            x, arrays[1], arrays[2], values=zeros, value_targets=zeros, normalize_advantages=False,
            clip_around_log_probs=np.float32(before),
        )  # fmt: skip
        return -loss[0]

    gradient = jax.grad(objective)(jnp.float32(before))
    np.testing.assert_allclose(gradient, centre * advantage / 40, rtol=1e-4)


def test_another_weight_function() -> None:
    """The softmax given by hand is the default; a function of another form has its own weights and gradient."""
    rng = np.random.default_rng(4)
    log_probs, behaviour, advantage = (rng.normal(scale=0.3, size=(5, 2, 4)).astype(np.float32) for _ in range(3))
    first = np.zeros((5, 2, 4), bool)

    def loss(log_probs: Any, function: Any = None) -> jax.Array:
        return losses.haepo_advantage_loss(
            log_probs, behaviour, advantage, first, temperature=0.7, weight_function=function
        )[0]

    def softmax(scores: jax.Array, mask: jax.Array, tau: jax.Array) -> jax.Array:
        return jax.nn.softmax(jnp.where(mask, scores / tau, -jnp.inf), axis=-1)

    def linear(scores: jax.Array, mask: jax.Array, tau: jax.Array) -> jax.Array:
        raw = jnp.where(mask, 1 + jnp.clip(scores / tau, -0.5, 0.5), 0)
        return raw / jnp.sum(raw, axis=-1, keepdims=True)

    np.testing.assert_allclose(loss(log_probs, softmax), loss(log_probs), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(loss)(log_probs, softmax), jax.grad(loss)(log_probs), rtol=1e-3, atol=1e-6)
    assert abs(float(loss(log_probs, linear) - loss(log_probs))) > 1e-4
    with pytest.raises(AssertionError, match="weight_function"):
        loss(log_probs, lambda *arguments: linear(*arguments)[..., :1])
    for arguments in ((log_probs[:, 0, :].sum(0)[None], advantage[0]),):
        found = losses.haepo_loss(
            arguments[0], arguments[1][:1], entropy="weights", kl="weights", weight_function=linear,
            reference_log_likelihood=arguments[0] + 0.1, entropy_coef=0.1, kl_coef=0.1,
        )[0]  # fmt: skip
        assert np.isfinite(found)
