"""HAEPO on whole trajectories: its parts, the loss against the oracle, and its gradient against the identity."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import losses_oracle as oracle
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haepo_jax import losses

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


OPTIONS = [
    {"score": s, "normalize": n, "entropy": h, "kl": d, "temperature": t}
    for (s, n), (h, d, t) in zip(
        itertools.product(("likelihood", "mean_likelihood", "log_ratio"), ("none", "center", "standardize", "rank")),
        itertools.cycle(
            [
                ("policy", "policy", 1.0),
                ("weights", "weights", 1.0),
                ("weights", "policy", "auto"),
                ("policy", "weights", "auto"),
                ("weights", "weights", "auto"),
            ]
        ),
    )
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
@oracle.FEW
@given(seed=SEEDS, shape=st.sampled_from(SHAPES))
def test_loss_and_metrics_equal_the_oracle(options: dict[str, Any], seed: int, shape: tuple[int, ...]) -> None:
    data = batch(seed, shape)
    rule = {} if options["temperature"] == 1.0 else {"temperature": "auto"}
    static = {k: v for k, v in options.items() if k != "temperature"} | rule
    loss, metrics = compiled(entropy_coef=0.3, kl_coef=0.7, **static)(data)
    expected = oracle.haepo(**(data | static), entropy_coef=0.3, kl_coef=0.7)
    scale = 1 + float(np.abs(data["returns"]).max())
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
        grad = jax.grad(
            lambda theta: call(
                data | {"log_likelihood": data["log_likelihood"] + jacobian @ theta}, score=score, normalize=normalize
            )[0]
        )(jnp.zeros(3))
    valid = [0, 1, 3, 4]
    divisor = data["lengths"] if score == "mean_likelihood" else np.ones(5)
    shift = data["behaviour"] if score == "log_ratio" else np.zeros(5)
    w = oracle.softmax([(data["log_likelihood"][k] - shift[k]) / divisor[k] for k in valid], 2.5)
    r = oracle.normalized([data["returns"][k] for k in valid], normalize)
    baseline = sum(a * b for a, b in zip(w, r, strict=True))
    terms = [w[i] * (r[i] - baseline) * jacobian[k] / divisor[k] for i, k in enumerate(valid)]
    np.testing.assert_allclose(-grad, sum(terms) / 2.5, rtol=1e-9)


@pytest.mark.parametrize("options", OPTIONS[::2], ids=lambda o: "-".join(map(str, o.values())))
def test_gradient_equals_finite_differences(options: dict[str, Any]) -> None:
    options = options | {"entropy_coef": 0.3, "kl_coef": 0.7, "temperature": 2.0}
    with jax.enable_x64(True):
        data = batch(5, (2, 4), np.float64) | {"mask": np.array([[1, 1, 1, 0], [1, 1, 1, 1]])}
        f = lambda x: call(data | {"log_likelihood": x}, **options)[0]  # noqa: E731
        np.testing.assert_allclose(
            jax.grad(f)(data["log_likelihood"]),
            oracle.numeric_gradient(f, data["log_likelihood"]),
            rtol=1e-6,
            atol=1e-8,
        )


def test_auto_temperature_is_a_constant_of_the_differentiation() -> None:
    with jax.enable_x64(True):
        data = batch(6, (2, 4), np.float64) | {"mask": np.ones((2, 4), bool)}
        data["log_likelihood"] *= 50
        tau = np.array([oracle.auto_tau(list(row)) for row in data["log_likelihood"]])
        assert tau.max() > 1
        by_rule = jax.grad(lambda x: call(data | {"log_likelihood": x}, temperature="auto")[0])(data["log_likelihood"])
        by_value = jax.grad(lambda x: call(data | {"log_likelihood": x}, temperature=tau)[0])(data["log_likelihood"])
        np.testing.assert_allclose(by_rule, by_value, rtol=1e-12)


def test_no_gradient_reaches_what_is_constant() -> None:
    data = batch(7, (2, 4)) | {"mask": np.ones((2, 4), bool), "temperature": jnp.float32(2.0)}
    for name in ("returns", "behaviour", "reference", "temperature"):
        grad = jax.grad(
            lambda x: call(
                data | {name: x}, score="log_ratio", entropy="weights", kl="weights", entropy_coef=1.0, kl_coef=1.0
            )[0]
        )(data[name])  # noqa: B023
        assert np.all(np.asarray(grad) == 0), name
    grad = jax.grad(lambda x: call(data | {"policy_entropy": x}, entropy_coef=2.0)[0])(data["policy_entropy"])
    np.testing.assert_allclose(grad, [-1.0, -1.0])  # the mean over two groups, times -entropy_coef


@oracle.FEW
@given(seed=SEEDS)
def test_none_and_center_have_the_same_gradient(seed: int) -> None:
    data = batch(seed, (2, 5)) | {"mask": np.ones((2, 5), bool)}
    none, center = (
        jax.grad(lambda x: call(data | {"log_likelihood": x}, normalize=how)[0])(data["log_likelihood"])  # noqa: B023
        for how in ("none", "center")
    )
    np.testing.assert_allclose(none, center, rtol=1e-4, atol=1e-5 * float(np.abs(data["returns"]).max()))


def test_equal_returns_give_no_gradient_even_unnormalised() -> None:
    grad = jax.grad(lambda x: losses.haepo_loss(x, jnp.full(7, 1e12), normalize="none")[0])(jnp.arange(7.0))
    assert np.all(np.asarray(grad) == 0)


def test_collapsed_weights_have_no_gradient() -> None:
    grad = jax.grad(lambda x: losses.haepo_loss(x, jnp.array([0.0, 1.0, 2.0]))[0])(jnp.array([0.0, -1e6, -1e6]))
    assert np.all(np.asarray(grad) == 0)


def test_fully_masked_group_leaves_the_mean() -> None:
    data = batch(8, (2, 5)) | {"mask": np.array([[1] * 5, [0] * 5])}
    alone = {k: (v[0] if np.ndim(v) else v) for k, v in data.items()}
    options: dict[str, Any] = {"entropy": "weights", "kl": "weights", "entropy_coef": 0.5, "kl_coef": 0.5}
    np.testing.assert_allclose(call(data, **options)[0], call(alone, **options)[0], rtol=1e-6)


def test_reference_defaults_to_the_behaviour() -> None:
    data = batch(9, (2, 5))
    arguments = (data["log_likelihood"], data["returns"])
    behaviour = data["behaviour"]
    default = losses.haepo_loss(*arguments, kl="weights", kl_coef=1.0, behaviour_log_likelihood=behaviour)[0]
    given_ = losses.haepo_loss(*arguments, kl="weights", kl_coef=1.0, reference_log_likelihood=behaviour)[0]
    np.testing.assert_array_equal(default, given_)


def test_hyperparameters_may_be_traced_and_vmapped() -> None:
    data = batch(10, (2, 5))
    data.pop("temperature")
    f = lambda tau, h, k: call(data, temperature=tau, entropy_coef=h, kl_coef=k, entropy="weights", kl="weights")[0]  # noqa: E731
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
