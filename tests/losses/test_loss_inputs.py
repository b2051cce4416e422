"""What every loss does with its inputs: refuses what is wrong, survives what is extreme, ignores what is masked."""

from __future__ import annotations

import doctest
import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haepo_jax import losses
from tests.losses import losses_oracle as oracle

K, T = 4, 6
REGULARIZED = {"entropy": "weights", "kl": "weights", "entropy_coef": 0.5, "kl_coef": 0.5}


def haepo(x: dict[str, Any], **options: Any) -> Any:
    return losses.haepo_loss(
        x["L"],
        x["returns"],
        mask=x["mask"],
        behaviour_log_likelihood=x["L_behaviour"],
        reference_log_likelihood=x["L_reference"],
        lengths=x["lengths"],
        **(REGULARIZED | options),
    )


def prefix(x: dict[str, Any], **options: Any) -> Any:
    return losses.haepo_prefix_loss(
        x["l"],
        x["l_behaviour"],
        x["rewards"],
        x["steps"],
        reference_log_probs=x["l_reference"],
        **(REGULARIZED | options),
    )


def advantage(x: dict[str, Any], **options: Any) -> Any:
    return losses.haepo_advantage_loss(
        x["l"],
        x["l_behaviour"],
        x["rewards"],
        x["firsts"],
        mask=x["steps"],
        **options,
    )


def ppo(x: dict[str, Any], **options: Any) -> Any:
    return losses.ppo_loss(
        x["l"],
        x["l_behaviour"],
        x["rewards"],
        values=x["values"],
        value_targets=x["targets"],
        mask=x["steps"],
        **options,
    )


def grpo(x: dict[str, Any], **options: Any) -> Any:
    return losses.grpo_loss(
        x["l"], x["l_behaviour"], x["returns"], x["steps"], reference_log_probs=x["l_reference"], **options
    )


def dpo(x: dict[str, Any], **options: Any) -> Any:
    return losses.dpo_loss(x["L"], x["returns"], reference_log_likelihood=x["L_reference"], mask=x["mask"], **options)


# Every loss with the inputs it takes the gradient of; options chosen so that every branch runs once.
CASES: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    **{
        f"haepo-{score}-{normalize}-{temperature}": (
            functools.partial(haepo, score=score, normalize=normalize, temperature=temperature),
            ("L",),
        )
        for score, normalize, temperature in (
            ("likelihood", "none", 1.0),
            ("likelihood", "standardize", "auto"),
            ("mean_likelihood", "rank", 1.0),
            ("log_ratio", "center", 1.0),
            ("log_ratio", "standardize", "auto"),
        )
    },
    "prefix": (functools.partial(prefix, history_decay=1.0), ("l",)),
    "prefix-auto": (functools.partial(prefix, temperature="auto"), ("l",)),
    "advantage": (advantage, ("l",)),
    "ppo": (ppo, ("l", "values")),
    "ppo-raw": (functools.partial(ppo, normalize_advantages=False), ("l", "values")),
    "ppo-clipped": (
        lambda x: losses.ppo_loss(
            x["l"],
            x["l_behaviour"],
            x["rewards"],
            values=x["values"],
            value_targets=x["targets"],
            mask=x["steps"],
            behaviour_values=x["values_behaviour"],
            value_clip_eps=0.2,
        ),
        ("l", "values"),
    ),
    "grpo": (grpo, ("l",)),
    "grpo-step": (functools.partial(grpo, ratio="trajectory", average="step", clip_eps_high=0.3), ("l",)),
    "grpo-constant": (functools.partial(grpo, normalize="center", average="constant"), ("l",)),
    "dpo": (dpo, ("L",)),
}
each_loss = pytest.mark.parametrize("loss, differentiated", CASES.values(), ids=CASES.keys())


FEW = (
    "haepo-mean_likelihood-rank-1.0",
    "haepo-log_ratio-standardize-auto",
    "prefix",
    "advantage",
    "ppo",
    "grpo",
    "dpo",
)
a_few_losses = pytest.mark.parametrize("loss, differentiated", [CASES[k] for k in FEW], ids=FEW)


def inputs(seed: int = 0, groups: tuple[int, ...] = (2,), horizon: int = T, members: int = K) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    whole, steps = (*groups, members), (horizon, *groups, members)
    draw = lambda shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    per_step = ("l", "l_behaviour", "l_reference", "rewards", "values", "targets", "values_behaviour")
    return {
        **{name: draw(whole) for name in ("L", "L_behaviour", "L_reference", "returns")},
        **{name: draw(steps) for name in per_step},
        "lengths": rng.integers(1, 9, whole).astype(np.float32),
        "mask": np.ones(whole, bool),
        "steps": np.ones(steps, bool),
        "firsts": np.broadcast_to((np.arange(horizon) == horizon // 2).reshape(-1, *[1] * len(whole)), steps),
    }


@functools.cache
def compiled(loss: Callable[..., Any], differentiated: tuple[str, ...]) -> Callable[..., Any]:
    """Value, metrics, and the gradient of either: compiled once for all tests of a loss on the same shapes."""

    def evaluate(x: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
        variables = {k: jnp.asarray(x[k]) for k in differentiated}
        (value, metrics), grad = jax.value_and_grad(lambda v: loss(x | v), has_aux=True)(variables)
        return value, metrics, grad, jax.grad(lambda v: sum(loss(x | v)[1].values()))(variables)

    return jax.jit(evaluate)


def evaluate(loss: Callable[..., Any], differentiated: tuple[str, ...], x: dict[str, Any]) -> tuple[Any, Any, Any]:
    return compiled(loss, differentiated)(x)[:3]


ACROSS = {"L": -1e6, "L_behaviour": 0.0, "L_reference": 0.0, "l": -1e6, "l_behaviour": 0.0, "l_reference": 0.0}
EXTREMES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "unlikely": lambda x: x | {k: np.full_like(x[k], v) for k, v in ACROSS.items()},
    "one_unlikely": lambda x: (
        x | {k: np.where(np.arange(x[k].shape[-1]) == 0, np.float32(v), x[k]) for k, v in ACROSS.items()}
    ),
    "one_likely": lambda x: (
        x | {k: np.where(np.arange(x[k].shape[-1]) > 0, np.float32(v), x[k]) for k, v in ACROSS.items()}
    ),
    "unlikely_before": lambda x: (
        x | {k: np.full_like(x[k], -1e6) for k in ("L_behaviour", "L_reference", "l_behaviour", "l_reference")}
    ),
    "huge_returns": lambda x: x | {k: x[k] * np.float32(1e12) for k in ("returns", "rewards")},
    "huge_and_unlikely": lambda x: (
        x
        | {k: x[k] * np.float32(1e12) for k in ("returns", "rewards")}
        | {k: np.where(np.arange(x[k].shape[-1]) == 0, np.float32(v), x[k]) for k, v in ACROSS.items()}
    ),
    "equal_returns": lambda x: x | {k: np.full_like(x[k], 1e12) for k in ("returns", "rewards", "targets")},
    "tiny_returns": lambda x: x | {k: x[k] * np.float32(1e-30) for k in ("returns", "rewards", "targets")},
    "same_policies": lambda x: x | {k: x[k[0]] for k in ("L_behaviour", "L_reference", "l_behaviour", "l_reference")},
    "all_but_one_masked": lambda x: (
        x | {k: np.broadcast_to(np.arange(x[k].shape[-1]) == 0, x[k].shape) for k in ("mask", "steps")}
    ),
    "one_group_masked": lambda x: (
        x | {"mask": x["mask"] & (np.arange(2) == 0)[:, None], "steps": x["steps"] & (np.arange(2) == 0)[:, None]}
    ),
    "all_masked": lambda x: x | {k: np.zeros_like(x[k]) for k in ("mask", "steps")},
}


@each_loss
@pytest.mark.parametrize("change", EXTREMES.values(), ids=EXTREMES.keys())
def test_value_metrics_and_gradient_stay_finite(
    loss: Callable[..., Any], differentiated: tuple[str, ...], change: Callable[..., Any]
) -> None:
    value, metrics, grad = evaluate(loss, differentiated, change(inputs()))
    assert oracle.all_finite((value, metrics, grad))
    np.testing.assert_array_equal(value, metrics["loss"])


@each_loss
def test_nothing_valid_gives_zero(loss: Callable[..., Any], differentiated: tuple[str, ...]) -> None:
    value, metrics, grad = evaluate(loss, differentiated, EXTREMES["all_masked"](inputs()))
    if loss is advantage:  # Weights that nothing has moved are equal.
        assert (metrics.pop("ess"), metrics.pop("max_weight")) == (1, 1 / K)
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves((value, metrics, grad)))


@pytest.mark.parametrize("loss, differentiated", [CASES[k] for k in FEW if k != "advantage"])
def test_a_single_member_is_finite(loss: Callable[..., Any], differentiated: tuple[str, ...]) -> None:
    assert oracle.all_finite(evaluate(loss, differentiated, inputs(members=1)))


def test_long_prefixes_with_huge_rewards_stay_finite() -> None:
    x = inputs(horizon=1000)
    for change in ("unlikely", "one_unlikely", "huge_and_unlikely", "equal_returns", "all_but_one_masked"):
        value, metrics, grad = evaluate(prefix, ("l",), EXTREMES[change](x))
        assert oracle.all_finite((value, metrics, grad)), change


@each_loss
@pytest.mark.parametrize("junk", [np.nan, np.inf, -1e30])
def test_masked_entries_change_neither_value_nor_gradient(
    loss: Callable[..., Any], differentiated: tuple[str, ...], junk: float
) -> None:
    x = inputs()
    live = {
        "mask": np.array([[1, 1, 0, 1], [1, 0, 1, 1]], bool),
        "steps": np.arange(T)[:, None, None] < np.array([[6, 2, 0, 4], [3, 0, 6, 1]]),
    }
    assert np.array_equal(live["steps"].any(0), live["mask"])
    clean = x | live
    dirty = dict(clean)
    for name, value in x.items():
        if name not in (*live, "firsts"):  # where episodes begin is no measurement
            dirty[name] = np.where(
                live["steps" if value.shape == x["steps"].shape else "mask"], value, np.float32(junk)
            )
    expected, actual = evaluate(loss, differentiated, clean), evaluate(loss, differentiated, dirty)
    chex.assert_trees_all_equal(actual, expected)
    for name, grad in actual[2].items():
        masked = ~live["steps" if grad.shape == x["steps"].shape else "mask"]
        assert np.all(np.asarray(grad)[masked] == 0)
        assert np.any(np.asarray(grad) != 0), name


@each_loss
def test_live_nan_is_not_hidden(loss: Callable[..., Any], differentiated: tuple[str, ...]) -> None:
    x = inputs()
    x[differentiated[0]][..., 0, 1] = np.nan
    assert np.isnan(evaluate(loss, differentiated, x)[0])


@pytest.mark.parametrize("name", ["haepo-log_ratio-center-1.0", "prefix", "advantage", "ppo", "ppo-raw", "grpo"])
def test_live_nan_return_is_not_hidden(name: str) -> None:
    loss, differentiated = CASES[name]
    x = inputs()
    x["returns"][..., 0, 1] = x["rewards"][..., 0, 1] = np.nan
    assert np.isnan(evaluate(loss, differentiated, x)[0])


@a_few_losses
@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_masks_may_be_numbers(loss: Callable[..., Any], differentiated: tuple[str, ...], kind: type) -> None:
    x = EXTREMES["all_but_one_masked"](inputs())
    numbers = x | {k: x[k].astype(kind) for k in ("mask", "steps")}
    run = compiled(loss, differentiated)
    np.testing.assert_array_equal(run(numbers)[0], run(x)[0])


@a_few_losses
def test_bfloat16_is_accumulated_in_float32(loss: Callable[..., Any], differentiated: tuple[str, ...]) -> None:
    x = {k: (v if v.dtype == bool else jnp.asarray(v, jnp.bfloat16)) for k, v in inputs().items()}
    wide = {k: (v if v.dtype == bool else v.astype(jnp.float32)) for k, v in x.items()}
    value, metrics, grad = evaluate(loss, differentiated, x)
    expected = evaluate(loss, differentiated, wide)
    assert value.dtype == jnp.float32 and all(m.dtype == jnp.float32 for m in metrics.values())
    assert all(g.dtype == jnp.bfloat16 for g in grad.values())
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)


@each_loss
def test_float64_stays_float64_and_float32_stays_float32_in_x64_mode(
    loss: Callable[..., Any], differentiated: tuple[str, ...]
) -> None:
    x = inputs()
    with jax.enable_x64(True):
        double = {k: (v if v.dtype == bool else v.astype(np.float64)) for k, v in x.items()}
        for data, dtype in ((double, jnp.float64), (x, jnp.float32)):
            value, metrics, grad = jax.eval_shape(functools.partial(evaluate, loss, differentiated), data)
            assert all(leaf.dtype == dtype for leaf in jax.tree.leaves((value, metrics, grad)))


@each_loss
def test_metrics_carry_no_gradient_and_are_scalars(loss: Callable[..., Any], differentiated: tuple[str, ...]) -> None:
    _, metrics, _, grad = compiled(loss, differentiated)(inputs())
    assert all(np.all(np.asarray(leaf) == 0) for leaf in grad.values())
    assert all(m.shape == () for m in metrics.values())


def test_integer_returns_are_cast() -> None:
    x = inputs()
    integers = x | {"returns": np.array([[1, 2, 3, 4], [4, 3, 2, 1]])}
    integers |= {name: np.arange(48).reshape(6, 2, 4) % 7 for name in ("rewards", "targets")}
    floats = integers | {k: integers[k].astype(np.float32) for k in ("returns", "rewards", "targets")}
    for name in ("haepo-likelihood-none-1.0", "prefix", "advantage", "ppo", "grpo", "dpo"):
        run = compiled(*CASES[name])
        np.testing.assert_array_equal(run(integers)[0], run(floats)[0])


ones, steps = np.ones(K, np.float32), np.ones((T, K), np.float32)
REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: losses.trajectory_log_likelihood(steps, steps[:3]),
        ValueError,
        r"trajectory_log_likelihood: mask must have shape \(6, 4\), the shape of log_probs, got \(3, 4\)",
    ),
    (
        lambda: losses.trajectory_log_likelihood(np.ones((T, K), int), steps),
        TypeError,
        r"trajectory_log_likelihood: log_probs must be floating point, got dtype int32",
    ),
    (
        lambda: losses.trajectory_log_likelihood(np.float32(1), np.float32(1)),
        ValueError,
        r"log_probs must have at least 1 axis",
    ),
    (
        lambda: losses.trajectory_log_likelihood(np.ones((T, 0), np.float32), np.ones((T, 0))),
        ValueError,
        r"log_probs must not have an empty axis, got shape \(6, 0\)",
    ),
    (
        lambda: losses.trajectory_log_likelihood(steps, steps + 0j),
        TypeError,
        r"mask must be bool, or 0 and 1, got dtype complex64",
    ),
    (
        lambda: losses.plackett_luce_weights(ones + 0j),
        TypeError,
        r"plackett_luce_weights: scores must be floating point, got dtype complex64",
    ),
    (lambda: losses.plackett_luce_weights(ones, temperature=0.0), ValueError, r"temperature must be above 0, got 0.0"),
    (
        lambda: losses.plackett_luce_weights(ones, temperature=float("nan")),
        ValueError,
        r"temperature must be above 0, got nan",
    ),
    (
        lambda: losses.plackett_luce_weights(ones, temperature=float("inf")),
        ValueError,
        r"temperature must be above 0.*, got inf",
    ),
    (
        lambda: losses.plackett_luce_weights(ones, temperature="Auto"),
        ValueError,
        r"temperature must be one of 'auto', got 'Auto'; did you mean 'auto'\?",
    ),
    (
        lambda: losses.plackett_luce_weights(ones, temperature=1j),
        TypeError,
        r"temperature must be real numbers, got dtype complex64",
    ),
    (
        lambda: losses.plackett_luce_weights(ones, temperature=np.ones(3)),
        ValueError,
        r"temperature must be a scalar, got shape \(3,\)",
    ),
    (
        lambda: losses.normalize_returns(ones, normalize="standardise"),
        ValueError,
        r"normalize_returns: normalize must be one of .*; did you mean 'standardize'\?",
    ),
    (
        lambda: losses.normalize_returns(np.array([object()] * K)),
        TypeError,
        r"normalize_returns: returns must be an array or a number, got dtype object",
    ),
    (lambda: losses.normalize_returns(None), TypeError, r"returns must be an array or a number, got None"),
    (
        lambda: losses.haepo_loss(ones, ones[:3]),
        ValueError,
        r"haepo_loss: returns must have shape \(4,\), the shape of log_likelihood, got \(3,\)",
    ),
    (
        lambda: losses.haepo_loss(ones, ones + 1j),
        TypeError,
        r"haepo_loss: returns must be real numbers, got dtype complex64",
    ),
    (
        lambda: losses.haepo_loss(ones, ones, score="likelyhood"),
        ValueError,
        r"score must be one of .*; did you mean 'likelihood'\?",
    ),
    (
        lambda: losses.haepo_loss(ones, ones, entropy="weight"),
        ValueError,
        r"entropy must be one of .*; did you mean 'weights'\?",
    ),
    (lambda: losses.haepo_loss(ones, ones, kl="qqq"), ValueError, r"kl must be one of 'policy', 'weights', got 'qqq'"),
    (lambda: losses.haepo_loss(ones, ones, kl="weights"), ValueError, r"kl='weights' needs reference_log_likelihood"),
    (
        lambda: losses.haepo_loss(ones, ones, score="log_ratio"),
        ValueError,
        r"score='log_ratio' needs behaviour_log_likelihood",
    ),
    (
        lambda: losses.haepo_loss(ones, ones, score="mean_likelihood"),
        ValueError,
        r"score='mean_likelihood' needs lengths",
    ),
    (lambda: losses.haepo_loss(ones, ones, mask=np.ones(5)), ValueError, r"mask must have shape \(4,\)"),
    (
        lambda: losses.haepo_loss(ones, ones, policy_entropy=ones),
        ValueError,
        r"policy_entropy must be a scalar, got shape \(4,\)",
    ),
    (lambda: losses.haepo_loss(ones, ones, kl_coef=float("nan")), ValueError, r"kl_coef must be finite, got nan"),
    (lambda: losses.haepo_loss(ones, ones, kl_coef="1"), TypeError, r"kl_coef must be an array or a number, got '1'"),
    (
        lambda: losses.haepo_prefix_loss(ones, ones, ones, ones),
        ValueError,
        r"haepo_prefix_loss: log_probs must have at least 2 axes",
    ),
    (
        lambda: losses.haepo_prefix_loss(steps, steps, steps[:, :2], steps),
        ValueError,
        r"haepo_prefix_loss: rewards must have shape \(6, 4\)",
    ),
    (
        lambda: losses.haepo_prefix_loss(steps, steps > 0, steps, steps),
        TypeError,
        r"behaviour_log_probs must be floating point, got dtype bool",
    ),
    (
        lambda: losses.haepo_prefix_loss(steps, steps, steps, steps, history_decay=0.0),
        ValueError,
        r"history_decay must be above 0 and at most 1, got 0.0",
    ),
    (
        lambda: losses.haepo_prefix_loss(steps, steps, steps, steps, history_decay=1.1),
        ValueError,
        r"history_decay must be above 0 and at most 1, got 1.1",
    ),
    (
        lambda: losses.haepo_prefix_loss(steps, steps, steps, steps, policy_entropy=ones),
        ValueError,
        r"policy_entropy must have shape \(6, 4\)",
    ),
    (
        lambda: losses.haepo_prefix_loss(steps, steps, steps, steps, kl="weight"),
        ValueError,
        r"did you mean 'weights'\?",
    ),
    (
        lambda: losses.haepo_advantage_loss(ones, ones, ones, ones),
        ValueError,
        r"haepo_advantage_loss: log_probs must have at least 2 axes",
    ),
    (
        lambda: losses.haepo_advantage_loss(steps[:, :1], steps[:, :1], steps[:, :1], steps[:, :1]),
        ValueError,
        r"haepo_advantage_loss: a group needs at least 2 members, got shape \(6, 1\)",
    ),
    (
        lambda: losses.haepo_advantage_loss(steps, steps, steps[:, :2], steps),
        ValueError,
        r"haepo_advantage_loss: advantages must have shape \(6, 4\), the shape of log_probs, got \(6, 2\)",
    ),
    (
        lambda: losses.haepo_advantage_loss(steps, steps, steps, ones),
        ValueError,
        r"haepo_advantage_loss: is_first must have shape \(6, 4\)",
    ),
    (
        lambda: losses.haepo_advantage_loss(steps, steps > 0, steps, steps),
        TypeError,
        r"haepo_advantage_loss: behaviour_log_probs must be floating point, got dtype bool",
    ),
    (
        lambda: losses.haepo_advantage_loss(steps, steps, steps, steps, history_decay=1.1),
        ValueError,
        r"haepo_advantage_loss: history_decay must be at least 0 and at most 1, got 1.1",
    ),
    (
        lambda: losses.haepo_advantage_loss(steps, steps, steps, steps, temperature=0.0),
        ValueError,
        r"haepo_advantage_loss: temperature must be above 0, got 0.0",
    ),
    (
        lambda: losses.haepo_advantage_loss(steps, steps, steps, steps, policy_kl=ones),
        ValueError,
        r"haepo_advantage_loss: policy_kl must have shape \(6, 4\)",
    ),
    (
        lambda: losses.generalized_advantage_estimation(steps, ones, steps, steps, steps, discount=0.9, gae_lambda=0.9),
        ValueError,
        r"generalized_advantage_estimation: rewards must have shape \(4,\), the shape of values",
    ),
    (
        lambda: losses.generalized_advantage_estimation(
            steps, steps, steps, steps, steps, discount=1.5, gae_lambda=0.9
        ),
        ValueError,
        r"discount must be at least 0 and at most 1, got 1.5",
    ),
    (
        lambda: losses.ppo_loss(ones, ones[:2], ones, values=ones, value_targets=ones),
        ValueError,
        r"ppo_loss: behaviour_log_probs must have shape \(4,\)",
    ),
    (
        lambda: losses.ppo_loss(ones, ones, ones, values=ones, value_targets=ones, clip_eps=-0.1),
        ValueError,
        r"clip_eps must be at least 0, got -0.1",
    ),
    (
        lambda: losses.ppo_loss(ones, ones, ones, values=ones, value_targets=ones, value_clip_eps=0.2),
        ValueError,
        r"value_clip_eps needs behaviour_values",
    ),
    (
        lambda: losses.grpo_loss(steps, steps, steps, steps),
        ValueError,
        r"grpo_loss: returns must have shape \(4,\), the shape of log_probs without time, got \(6, 4\)",
    ),
    (
        lambda: losses.grpo_loss(steps, steps, ones, steps, reference_log_probs=ones),
        ValueError,
        r"reference_log_probs must have shape \(6, 4\)",
    ),
    (
        lambda: losses.dpo_loss(ones, ones, reference_log_likelihood=ones[:1]),
        ValueError,
        r"dpo_loss: reference_log_likelihood must have shape \(4,\)",
    ),
    (
        lambda: losses.dpo_loss(ones, ones, reference_log_likelihood=ones, beta=0),
        ValueError,
        r"beta must be above 0, got 0",
    ),
    (lambda: losses.kl_k3(ones, steps), ValueError, r"kl_k3: reference_log_probs must have shape \(4,\)"),
]


@pytest.mark.parametrize("call, error, message", REFUSED, ids=[m[:60] for _, _, m in REFUSED])
def test_bad_input_is_refused_by_name(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        jax.eval_shape(call)  # refused before anything is computed


def test_shapes_are_also_checked_under_jit_and_numbers_are_not() -> None:
    with pytest.raises(ValueError, match="returns must have shape"):
        jax.jit(losses.haepo_loss)(ones, ones[:3])
    jax.eval_shape(lambda tau: losses.haepo_loss(ones, ones, temperature=tau), -1.0)


MODULES = [m.name for m in pkgutil.iter_modules(losses.__path__) if m.name not in ("_checks", "numerics")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    results = doctest.testmod(importlib.import_module(f"haepo_jax.losses.{name}"))
    assert results.attempted > 0 and results.failed == 0


def test_every_public_function_has_an_example() -> None:
    for name in losses.__all__:
        if name not in ("AUTO", "Auto"):
            assert ">>> " in getattr(losses, name).__doc__, name
