"""HAEPO on whole trajectories: its parts, the loss against the oracle, and its gradient against the identity."""

from __future__ import annotations

import functools
import itertools
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

SHAPES = ((4,), (2, 5), (2, 1, 3))
SEEDS = st.integers(0, 2**31)


def batch(seed: int, shape: tuple[int, ...], dtype: Any = np.float32) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    scale = rng.choice([0.1, 1.0, 10.0])
    draw = lambda: (scale * rng.normal(size=shape)).astype(dtype)  # noqa: E731
    current = draw()
    ties = rng.random() < 0.3
    returns = rng.integers(-2, 3, shape).astype(dtype) if ties else (rng.choice([1, 100]) * draw())
    return {
        "log_likelihood": current,
        "returns": returns.astype(dtype),
        "mask": rng.random(shape) < rng.choice([0.3, 0.8, 1.0]),
        "behaviour": (current + rng.normal(size=shape)).astype(dtype),
        "reference": (current + rng.normal(size=shape)).astype(dtype),
        "lengths": rng.integers(1, 9, shape),
        "policy_entropy": rng.random(shape[:-1]).astype(dtype),
        "policy_kl": rng.random(shape[:-1]).astype(dtype),
        "temperature": dtype(rng.choice([0.5, 1.0, 7.0])),
    }


def call(data: dict[str, Any], **options: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    return losses.haepo_loss(
        data["log_likelihood"],
        data["returns"],
        mask=data["mask"],
        behaviour_log_likelihood=data["behaviour"],
        reference_log_likelihood=data["reference"],
        lengths=data["lengths"],
        policy_entropy=data["policy_entropy"],
        policy_kl=data["policy_kl"],
        **({"temperature": data["temperature"]} | options),
    )


@functools.cache
def compiled(**options: Any) -> Any:
    return jax.jit(functools.partial(call, **options))


@functools.cache
def gradient(**options: Any) -> Any:
    """d loss / d log_likelihood, compiled once for each set of options."""
    return jax.jit(
        lambda data: jax.grad(lambda x: call(data | {"log_likelihood": x}, **options)[0])(data["log_likelihood"])
    )


REGULARIZERS = (
    {"entropy": "policy", "kl": "policy"},
    {"entropy": "weights", "kl": "weights"},
    {"entropy": "weights", "kl": "policy", "temperature": "auto"},
    {"entropy": "policy", "kl": "weights", "temperature": "auto"},
    {"entropy": "weights", "kl": "weights", "temperature": "auto"},
)
# Every score with every normalisation, the rest in turn.
OPTIONS: list[dict[str, Any]] = [
    {"score": score, "normalize": normalize} | REGULARIZERS[i % len(REGULARIZERS)]
    for i, (score, normalize) in enumerate(
        itertools.product(("likelihood", "mean_likelihood", "log_ratio"), ("none", "center", "standardize", "rank"))
    )
]


def names(options: dict[str, Any]) -> str:
    return "-".join(options.values())


@pytest.mark.parametrize("options", OPTIONS, ids=names)
@oracle.SOME
@given(seed=SEEDS)
def test_loss_and_metrics_equal_the_oracle(options: dict[str, Any], seed: int) -> None:
    data = batch(seed, SHAPES[OPTIONS.index(options) % len(SHAPES)])
    loss, metrics = compiled(entropy_coef=0.3, kl_coef=0.7, **options)(data)
    expected = oracle.haepo(**(data | options), entropy_coef=0.3, kl_coef=0.7)
    scale = 1 + float(np.abs(data["returns"]).max()) * (options["normalize"] in ("none", "center"))
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-4, atol=2e-5 * scale)
    oracle.close(metrics, expected, rtol=1e-4, atol=2e-5 * scale)


@oracle.SOME
@given(seed=SEEDS, shape=st.sampled_from(SHAPES), tau=st.sampled_from([0.3, 1.0, 20.0]))
def test_weights_equal_the_oracle_and_sum_to_one(seed: int, shape: tuple[int, ...], tau: float) -> None:
    data = batch(seed, shape)
    weights = np.asarray(losses.plackett_luce_weights(data["log_likelihood"], temperature=tau, mask=data["mask"]))
    expected = np.zeros(shape)
    for group, valid in oracle.groups(data["mask"]):
        expected[group][valid] = oracle.softmax([float(data["log_likelihood"][group][k]) for k in valid], tau)
        np.testing.assert_allclose(weights[group].sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(weights, expected, rtol=2e-5, atol=1e-7)
    assert np.all(weights[~data["mask"]] == 0)


@oracle.SOME
@given(seed=SEEDS, shape=st.sampled_from(SHAPES), normalize=st.sampled_from(["none", "center", "standardize", "rank"]))
def test_normalized_returns_equal_the_oracle(seed: int, shape: tuple[int, ...], normalize: str) -> None:
    data = batch(seed, shape)
    actual = losses.normalize_returns(data["returns"], normalize=normalize, mask=data["mask"])
    expected = np.zeros(shape)
    for group, valid in oracle.groups(data["mask"]):
        expected[group][valid] = oracle.normalized([float(data["returns"][group][k]) for k in valid], normalize)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_rank_ties_share_their_mean_rank() -> None:
    ranks = losses.normalize_returns(jnp.array([3.0, 1.0, 3.0, 7.0, 0.0]), normalize="rank")
    # Ranks 3.5, 2, 3.5, 5, 1 of five, brought to [-0.5, 0.5].
    np.testing.assert_allclose(ranks, [0.125, -0.25, 0.125, 0.5, -0.5])


@pytest.mark.parametrize("normalize", ["center", "standardize", "rank"])
@pytest.mark.parametrize("value", [1e12, -0.1, 1 / 3, 0.0])
def test_equal_returns_are_exactly_zero(normalize: str, value: float) -> None:
    assert np.all(np.asarray(losses.normalize_returns(jnp.full((2, 7), value), normalize=normalize)) == 0)


@pytest.mark.parametrize("normalize", ["standardize", "rank"])
def test_returns_that_differ_by_rounding_are_equal(normalize: str) -> None:
    """The same rewards, summed in another order."""
    rewards = np.array([*itertools.permutations([0.1, 0.2, 0.3, 0.4])], np.float32)
    returns = np.sum(rewards, axis=1, dtype=np.float32)
    assert len({*returns.tolist()}) > 1
    assert np.all(np.asarray(losses.normalize_returns(returns, normalize=normalize)) == 0)
    mixed = losses.normalize_returns(np.append(returns, np.float32(1.001)), normalize=normalize)
    assert len({*np.asarray(mixed).round(2).tolist()}) == 2


def test_trajectory_log_likelihood_sums_live_steps_over_the_first_axis() -> None:
    rng = np.random.default_rng(0)
    log_probs, mask = rng.normal(size=(6, 2, 3)).astype(np.float32), rng.random((6, 2, 3)) < 0.5
    dirty = np.where(mask, log_probs, np.nan)
    expected = [[sum(float(x) for x in log_probs[:, i, k][mask[:, i, k]]) for k in range(3)] for i in range(2)]
    np.testing.assert_allclose(losses.trajectory_log_likelihood(dirty, mask), expected, rtol=1e-5, atol=1e-6)
    grad = jax.grad(lambda x: losses.trajectory_log_likelihood(x, mask).sum())(dirty)
    np.testing.assert_array_equal(grad, mask.astype(np.float32))


BOUND = 4 * math.e**2 / (1 + math.e**2) ** 2


@oracle.SOME
@given(
    scores=st.lists(
        st.one_of(st.floats(-1e6, 1e6, width=32), st.sampled_from([0.0, 2.0, -1e6, 1e6])), min_size=6, max_size=6
    ),
    members=st.integers(1, 6),
)
def test_auto_temperature_keeps_the_effective_sample_size(scores: list[float], members: int) -> None:
    mask = np.arange(6) < members
    weights = np.asarray(losses.plackett_luce_weights(np.float32(scores), temperature="auto", mask=mask), np.float64)
    assert 1 / np.sum(weights**2) >= BOUND * members * (1 - 1e-5)


def test_auto_temperature_of_an_impossible_trajectory() -> None:
    """A score of -inf has no weight, and the others have the temperature that they have without it."""
    weights = losses.plackett_luce_weights(jnp.array([-jnp.inf, -1.0, -9.0]), temperature="auto")
    np.testing.assert_allclose(weights[1:], losses.plackett_luce_weights(jnp.array([-1.0, -9.0]), temperature="auto"))
    assert weights[0] == 0


def test_auto_temperature_reaches_its_bound_and_its_name_is_a_static_pytree() -> None:
    # Kantorovich is tight where a share 1/(1 + e^2) of the members, here 3 of 25, holds the large weight.
    scores = jnp.array([1e6] * 3 + [0.0] * 22)
    weights = losses.plackett_luce_weights(scores, temperature="auto")
    ess = 1 / float(jnp.sum(weights**2)) / 25
    assert BOUND <= ess < BOUND * 1.01
    assert jax.tree.leaves(losses.AUTO) == []
    by_instance = jax.jit(lambda s, tau: losses.plackett_luce_weights(s, temperature=tau))(scores, losses.AUTO)
    np.testing.assert_array_equal(by_instance, weights)
    near = jnp.array([0.3, 0.1, 1.9])
    np.testing.assert_array_equal(
        losses.plackett_luce_weights(near, temperature="auto"), losses.plackett_luce_weights(near)
    )


def test_scores_far_from_zero_keep_their_difference() -> None:
    scores = jnp.array([-1e6, -1e6 + 1])
    for tau in (1.0, 3.0):
        expected = oracle.softmax([0.0, 1.0], tau)
        np.testing.assert_allclose(losses.plackett_luce_weights(scores, temperature=tau), expected, rtol=1e-6)


def test_temperature_may_differ_between_groups() -> None:
    scores = jnp.array([[0.0, 1.0], [0.0, 1.0]])
    weights = losses.plackett_luce_weights(scores, temperature=jnp.array([1.0, 2.0]))
    expected = [oracle.softmax([0.0, 1.0], 1.0), oracle.softmax([0.0, 1.0], 2.0)]
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


@pytest.mark.parametrize("score", ["likelihood", "mean_likelihood", "log_ratio"])
@pytest.mark.parametrize("normalize", ["none", "standardize", "rank"])
def test_gradient_is_the_identity_of_the_design(score: str, normalize: str) -> None:
    with jax.enable_x64(True):
        data = batch(3, (5,), np.float64) | {"mask": np.array([1, 1, 0, 1, 1]), "temperature": 2.5}
        jacobian = np.random.default_rng(4).normal(size=(5, 3))  # dL/dtheta
        grad = np.asarray(gradient(score=score, normalize=normalize)(data)) @ jacobian
    valid = [0, 1, 3, 4]
    divisor = data["lengths"] if score == "mean_likelihood" else np.ones(5)
    shift = data["behaviour"] if score == "log_ratio" else np.zeros(5)
    w = oracle.softmax([(data["log_likelihood"][k] - shift[k]) / divisor[k] for k in valid], 2.5)
    r = oracle.normalized([data["returns"][k] for k in valid], normalize)
    baseline = sum(a * b for a, b in zip(w, r, strict=True))
    terms = [w[i] * (r[i] - baseline) * jacobian[k] / divisor[k] for i, k in enumerate(valid)]
    np.testing.assert_allclose(-grad, sum(terms) / 2.5, rtol=1e-9)


@pytest.mark.parametrize("options", OPTIONS[::3], ids=names)
def test_gradient_equals_finite_differences(options: dict[str, Any]) -> None:
    options = options | {"entropy_coef": 0.3, "kl_coef": 0.7, "temperature": 2.0}
    with jax.enable_x64(True):
        data = batch(5, (2, 4), np.float64) | {"mask": np.array([[1, 1, 1, 0], [1, 1, 1, 1]])}
        oracle.check_gradient(lambda x: call(data | {"log_likelihood": x}, **options)[0], data["log_likelihood"])


def test_auto_temperature_is_a_constant_of_the_differentiation() -> None:
    with jax.enable_x64(True):
        data = batch(6, (2, 4), np.float64) | {"mask": np.ones((2, 4), bool)}
        data["log_likelihood"] *= 50
        tau = np.array([oracle.auto_tau(list(row)) for row in data["log_likelihood"]])
        assert tau.max() > 1
        by_rule = gradient(temperature="auto")(data)
        by_value = gradient()(data | {"temperature": tau})
        np.testing.assert_allclose(by_rule, by_value, rtol=1e-12)


def test_no_gradient_reaches_what_is_constant() -> None:
    data = batch(7, (2, 4)) | {"mask": np.ones((2, 4), bool), "temperature": jnp.float32(2.0)}
    options: dict[str, Any] = {"entropy": "weights", "kl": "weights", "entropy_coef": 1.0, "kl_coef": 1.0}
    constants = {name: data[name] for name in ("returns", "behaviour", "reference", "temperature")}
    oracle.check_constants(lambda x: call(data | x, score="log_ratio", **options)[0], constants)
    grad = jax.jit(jax.grad(lambda x: call(data | {"policy_entropy": x}, entropy_coef=2.0)[0]))(data["policy_entropy"])
    np.testing.assert_allclose(grad, [-1.0, -1.0])  # the mean over two groups, times -entropy_coef


@oracle.FEW
@given(seed=SEEDS)
def test_none_and_center_have_the_same_gradient(seed: int) -> None:
    data = batch(seed, (2, 5)) | {"mask": np.ones((2, 5), bool)}
    none, center = (gradient(normalize=how)(data) for how in ("none", "center"))
    np.testing.assert_allclose(none, center, rtol=1e-4, atol=1e-5 * float(np.abs(data["returns"]).max()))


def test_equal_returns_give_no_gradient_even_unnormalised() -> None:
    data = batch(11, (2, 5)) | {"returns": np.full((2, 5), 1e12, np.float32), "mask": np.ones((2, 5), bool)}
    assert np.all(np.asarray(gradient(normalize="none")(data)) == 0)


def test_collapsed_weights_have_no_gradient() -> None:
    data = batch(12, (2, 5)) | {"mask": np.ones((2, 5), bool)}
    assert np.any(np.asarray(gradient(normalize="center")(data)) != 0)
    data["log_likelihood"] = np.where(np.arange(5) == 2, 0, np.full((2, 5), -1e6, np.float32))
    assert np.all(np.asarray(gradient(normalize="center")(data)) == 0)


def test_fully_masked_group_leaves_the_mean() -> None:
    data = batch(8, (2, 5)) | {"mask": np.array([[1] * 5, [0] * 5])}
    alone = {k: (v[0] if np.ndim(v) else v) for k, v in data.items()}
    options: dict[str, Any] = {"entropy": "weights", "kl": "weights", "entropy_coef": 0.5, "kl_coef": 0.5}
    run = compiled(**options)
    np.testing.assert_allclose(run(data)[0], run(alone)[0], rtol=1e-6)


def test_reference_defaults_to_the_behaviour() -> None:
    data = batch(9, (2, 5))
    run = compiled(kl="weights", kl_coef=1.0)
    default, named = run(data | {"reference": None}), run(data | {"reference": data["behaviour"]})
    np.testing.assert_array_equal(default[0], named[0])
    assert float(default[0]) != float(run(data)[0])


def test_hyperparameters_may_be_traced_and_vmapped() -> None:
    data = batch(10, (2, 5))
    f = jax.jit(
        lambda tau, h, k: call(data, temperature=tau, entropy_coef=h, kl_coef=k, entropy="weights", kl="weights")[0]
    )
    values = jnp.array([0.5, 1.0, 3.0])
    batched = jax.jit(jax.vmap(f))(values, values, values)
    np.testing.assert_allclose(batched, [f(v, v, v) for v in (0.5, 1.0, 3.0)], rtol=1e-5, atol=1e-6)


def test_k3_estimates_the_divergence_from_the_reference() -> None:
    theta, reference = np.array([0.2, 0.3, 0.5]), np.array([0.5, 0.25, 0.25])
    estimates = np.asarray(losses.kl_k3(jnp.log(theta), jnp.log(reference)))
    # The reference's own average over its actions is the divergence itself, without bias.
    exact = sum(p * math.log(p / q) for p, q in zip(reference, theta, strict=True))
    np.testing.assert_allclose(reference @ estimates, exact, rtol=1e-5)
    assert np.all(estimates >= 0)
    np.testing.assert_allclose(losses.kl_k3(jnp.array([1e-3]), jnp.array([0.0])), 0.5e-6, rtol=1e-3)


@pytest.mark.parametrize("gap", [-1e6, -25.0, 25.0, 1e6])
def test_k3_stays_finite_and_points_back_to_the_reference(gap: float) -> None:
    value, grad = jax.value_and_grad(lambda x: losses.kl_k3(x, jnp.zeros(())))(jnp.float32(gap))
    assert np.isfinite(value) and np.isfinite(grad) and value > 0
    assert np.sign(grad) == np.sign(gap)
    assert jax.grad(lambda x: losses.kl_k3(jnp.zeros(()), x))(jnp.float32(1.0)) == 0
