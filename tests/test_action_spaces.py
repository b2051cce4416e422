"""Actions of several integers, of dicts and tuples, and squashed ones: their distributions against SciPy, and all four
algorithms on them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

import haepo_jax as hx
from haepo_jax.action_outputs import action_size
from haepo_jax.distributions import (
    LOG_STD_MAX,
    LOG_STD_MIN,
    DiagonalGaussian,
    Factorised,
    TanhGaussian,
    action_distribution,
)
from haepo_jax.envs import TimeStep, check_environment
from haepo_jax.rollout import to_env_action
from haepo_jax.spaces import Box, Discrete, MultiDiscrete
from tests.toy_envs import Controls

RNG = np.random.default_rng(0)
SMALL: dict[str, Any] = {
    "total_steps": 4000, "num_envs": 16, "num_minibatches": 2, "num_epochs": 2, "log_points": 2, "eval_episodes": 4,
    "hidden_sizes": (16,),
}  # fmt: skip


def categoricals(logits: np.ndarray, sizes: tuple[int, ...], mask: np.ndarray | None = None) -> list[np.ndarray]:
    """SciPy's log-probabilities of each part."""
    parts = np.split(np.where(True if mask is None else mask, logits, -np.inf), np.cumsum(sizes)[:-1], axis=-1)
    return [scipy.special.log_softmax(part, axis=-1) for part in parts]


@pytest.mark.parametrize("sizes", [(3, 3), (4, 2, 3), (1, 5)])
@pytest.mark.parametrize("masked", [False, True])
def test_multi_discrete_is_a_product_of_categoricals(sizes: tuple[int, ...], masked: bool) -> None:
    logits, other_logits = RNG.normal(size=(2, 6, sum(sizes)))
    mask = None
    if masked:
        mask = RNG.random((6, sum(sizes))) < 0.5
        mask[:, np.cumsum((0, *sizes[:-1]))] = True
    policy, other = (
        action_distribution(MultiDiscrete(sizes), jnp.asarray(x, jnp.float32), mask) for x in (logits, other_logits)
    )
    parts, other_parts = (categoricals(x, sizes, mask) for x in (logits, other_logits))
    action = np.stack([np.argmax(np.exp(part), axis=-1) for part in parts], axis=-1)
    np.testing.assert_array_equal(policy.mode(), action)
    chosen = sum(np.take_along_axis(part, action[:, i, None], -1)[:, 0] for i, part in enumerate(parts))
    np.testing.assert_allclose(policy.log_prob(jnp.asarray(action)), chosen, rtol=1e-5)
    entropy = sum(scipy.stats.entropy(np.exp(part), axis=-1) for part in parts)
    np.testing.assert_allclose(policy.entropy(), entropy, rtol=1e-5, atol=1e-6)
    kl = sum(scipy.stats.entropy(np.exp(p), np.exp(q), axis=-1) for p, q in zip(parts, other_parts, strict=True))
    np.testing.assert_allclose(policy.kl_to(other), kl, rtol=1e-4, atol=1e-6)

    samples = np.asarray(jax.vmap(policy.sample)(jax.random.split(jax.random.key(0), 4000)))
    assert samples.shape == (4000, 6, len(sizes)) and samples.dtype == np.int32
    for i, part in enumerate(parts):
        frequency = (samples[:, :, i, None] == np.arange(sizes[i])).mean(0)
        p = np.exp(part)
        assert np.all(np.abs(frequency - p) <= 5 * np.sqrt(p * (1 - p) / 4000))


def test_gradients_of_what_fills_up_the_rows_are_zero_and_finite() -> None:
    def everything(logits: jax.Array) -> jax.Array:
        policy = action_distribution(MultiDiscrete((2, 3)), logits, jnp.array([True, False, True, True, False]))
        return policy.entropy() + policy.log_prob(jnp.array([0, 1]))

    gradient = np.asarray(jax.grad(everything)(jnp.array([0.3, 1.0, -0.2, 0.1, 0.7])))
    assert np.all(np.isfinite(gradient)) and gradient[1] == gradient[4] == 0 and gradient[2] != 0


def test_a_dict_or_tuple_is_the_sum_of_its_parts() -> None:
    space = {"nested": (Discrete(3), Box(-1.0, 1.0, (2,))), "many": MultiDiscrete((2, 4))}
    mask = {"nested": (np.array([True, False, True]), None), "many": np.ones(6, bool)}

    def output() -> Any:
        logits, mean, std, many = (jnp.asarray(RNG.normal(size=n) / 2, jnp.float32) for n in (3, 2, 2, 6))
        return {"nested": (logits, (mean, std)), "many": many}

    outputs, others = output(), output()
    policy, other = action_distribution(space, outputs, mask), action_distribution(space, others, mask)
    parts, other_parts = (
        [
            action_distribution(space["nested"][0], out["nested"][0], mask["nested"][0]),  # type: ignore[index]
            action_distribution(space["nested"][1], out["nested"][1]),  # type: ignore[index]
            action_distribution(space["many"], out["many"], mask["many"]),
        ]
        for out in (outputs, others)
    )
    action = policy.sample(jax.random.key(0))
    own = [action["nested"][0], action["nested"][1], action["many"]]
    pairs = list(zip(parts, own, strict=True))
    np.testing.assert_allclose(policy.log_prob(action), sum(part.log_prob(x) for part, x in pairs), rtol=1e-5)
    np.testing.assert_allclose(policy.entropy(), sum(part.entropy() for part in parts), rtol=1e-5)
    kl = sum(p.kl_to(q) for p, q in zip(parts, other_parts, strict=True))
    np.testing.assert_allclose(policy.kl_to(other), kl, rtol=1e-5)
    assert jax.tree.structure(policy.mode()) == jax.tree.structure(action)
    # The parts are drawn with keys of their own: equal parts have unequal samples.
    twins = Factorised(tuple([DiagonalGaussian(jnp.zeros(1), jnp.zeros(1))] * 2)).sample(jax.random.key(0))
    assert float(twins[0][0]) != float(twins[1][0])


class TestTanhGaussian:
    means = np.array([-2.5, -0.3, 0.0, 1.0, 4.0])
    log_stds = np.array([LOG_STD_MIN, -1.0, 0.0, 0.5, LOG_STD_MAX])

    @staticmethod
    def one(mean: float, log_std: float) -> TanhGaussian:
        return TanhGaussian(DiagonalGaussian(jnp.full(1, mean), jnp.full(1, log_std)))

    def test_log_prob_is_the_density_of_the_tanh_of_a_normal(self) -> None:
        policy = TanhGaussian(DiagonalGaussian(jnp.asarray(self.means), jnp.asarray(self.log_stds)))
        for action in (-0.999, -0.5, 0.0, 0.3, 0.99):
            raw = np.arctanh(action)
            expected = scipy.stats.norm(self.means, np.exp(self.log_stds)).logpdf(raw) - np.log1p(-(action**2))
            found = policy.log_prob(jnp.full(5, action, jnp.float32))
            np.testing.assert_allclose(found, expected.sum(), rtol=2e-4)

    @pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (-0.3, -2.0), (0.7, -0.5)])
    def test_the_density_is_one_in_all(self, mean: float, log_std: float) -> None:
        grid = np.linspace(-0.999999, 0.999999, 400_001)
        density = np.exp(jax.vmap(self.one(mean, log_std).log_prob)(jnp.asarray(grid, jnp.float32)[:, None]))
        assert abs(np.trapezoid(density, grid) - 1) < 2e-3

    def test_entropy_is_the_integral(self) -> None:
        worst = 0.0
        for mean in self.means:
            for log_std in [*self.log_stds, np.log(5)]:
                std = np.exp(log_std)
                raw = np.linspace(mean - 12 * std, mean + 12 * std, 200_001)
                p = scipy.stats.norm(mean, std)
                log_slope = 2 * (np.log(2) - raw - np.logaddexp(0, -2 * raw))
                expected = p.entropy() + np.trapezoid(p.pdf(raw) * log_slope, raw)
                worst = max(worst, abs(float(self.one(mean, log_std).entropy()) - expected))
        assert worst < 1e-3, worst

    def test_kl_is_the_integral(self) -> None:
        p, q = self.one(0.2, -0.5), self.one(-0.1, 0.0)

        def integrand(x: float) -> float:
            action = np.tanh(x)
            raw_p, raw_q = scipy.stats.norm(0.2, np.exp(-0.5)), scipy.stats.norm(-0.1, 1.0)
            slope = np.log1p(-(action**2))
            return raw_p.pdf(x) * ((raw_p.logpdf(x) - slope) - (raw_q.logpdf(x) - slope))

        np.testing.assert_allclose(p.kl_to(q), scipy.integrate.quad(integrand, -8, 8)[0], rtol=1e-4)

    def test_saturated_samples_have_finite_log_probs_and_gradients(self) -> None:
        def surprisal(mean: jax.Array) -> jax.Array:
            policy = TanhGaussian(DiagonalGaussian(mean, jnp.zeros(3)))
            action = jax.lax.stop_gradient(policy.sample(jax.random.key(0)))
            return policy.log_prob(action) + policy.entropy()

        for mean in (0.0, 8.0, 50.0, -50.0):
            value, gradient = jax.value_and_grad(surprisal)(jnp.full(3, mean))
            assert np.isfinite(value) and np.all(np.isfinite(gradient))

    def test_samples_agree_with_log_prob(self) -> None:
        policy = TanhGaussian(DiagonalGaussian(jnp.array([0.4, -1.0]), jnp.array([-0.5, 0.2])))
        samples = jax.vmap(policy.sample)(jax.random.split(jax.random.key(0), 20_000))
        assert np.all(np.abs(samples) < 1)
        surprisal = -np.asarray(policy.log_prob(samples), np.float64)
        assert abs(surprisal.mean() - float(policy.entropy())) < 5 * surprisal.std() / np.sqrt(20_000)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Beta:
    """A distribution of a user's own, on [-1, 1]."""

    a: jax.Array
    b: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        return jnp.clip(2 * jax.random.beta(key, self.a, self.b) - 1, -0.999, 0.999)

    def mode(self) -> jax.Array:
        return 2 * self.a / (self.a + self.b) - 1

    def log_prob(self, action: jax.Array) -> jax.Array:
        return jnp.sum(jax.scipy.stats.beta.logpdf((action + 1) / 2, self.a, self.b) - jnp.log(2.0), -1)

    def entropy(self) -> jax.Array:
        digamma, total = jax.scipy.special.digamma, self.a + self.b
        terms = jax.scipy.special.betaln(self.a, self.b) + (total - 2) * digamma(total)
        return jnp.sum(terms - (self.a - 1) * digamma(self.a) - (self.b - 1) * digamma(self.b) + jnp.log(2.0), -1)

    def kl_to(self, other: Beta) -> jax.Array:
        digamma, betaln = jax.scipy.special.digamma, jax.scipy.special.betaln
        difference = betaln(other.a, other.b) - betaln(self.a, self.b)
        da, db = self.a - other.a, self.b - other.b
        total = self.a + self.b
        return jnp.sum(difference + da * digamma(self.a) + db * digamma(self.b) - (da + db) * digamma(total), -1)


@dataclasses.dataclass(frozen=True)
class BetaPolicy:
    def init(self, key: jax.Array, observation: jax.Array) -> tuple[Any, Any]:
        return 0.1 * jax.random.normal(key, (observation.shape[-1], 2)), ()

    def apply(self, params: Any, carry: Any, observation: jax.Array, is_first: jax.Array) -> tuple[Any, Beta]:
        a, b = jnp.split(1 + jax.nn.softplus(observation @ params), 2, axis=-1)
        return carry, Beta(a, b)


@dataclasses.dataclass(eq=False)
class Slider:
    """One step: the reward is how near the action is to 3."""

    bounds: tuple[float, float] = (0.0, 4.0)
    horizon = 1
    name = "toy/slider"
    observation_space = Box(0.0, 1.0, (1,))

    @property
    def action_space(self) -> Box:
        return Box(*self.bounds, (1,))

    def reset(self, key: jax.Array) -> tuple[Any, jax.Array]:
        return jnp.int32(0), jnp.ones(1)

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> TimeStep:
        return TimeStep(state, jnp.ones(1), -jnp.abs(action[0] - 3), jnp.bool_(True), jnp.bool_(False))


def test_a_policy_may_return_a_distribution_of_its_own() -> None:
    settings = SMALL | {"total_steps": 2000, "learning_rate": 3e-2, "normalize_observations": False}
    _, history = jax.jit(hx.EpisodicHAEPO(Slider(), policy=BetaPolicy(), **settings).train)(jax.random.key(0))
    assert float(history["eval_return_greedy"][-1]) > -0.5, history["eval_return_greedy"]


@pytest.mark.parametrize("sizes", [(3, 3), (2, 3)])
def test_an_integer_without_a_valid_action_leaves_the_others_alone(sizes: tuple[int, ...]) -> None:
    """As of an agent of jumanji/MMST-v0 that has finished: its floor of -1e9 rounded the other log-probabilities away."""
    mask = jnp.arange(sum(sizes)) >= sizes[0]
    logits = jnp.linspace(-1.0, 2.0, sum(sizes))
    policy = action_distribution(MultiDiscrete(sizes), logits, mask)
    other = action_distribution(Discrete(sizes[1]), logits[sizes[0] :])
    for integer in range(sizes[1]):
        expected = other.log_prob(jnp.int32(integer))
        np.testing.assert_allclose(policy.log_prob(jnp.array([0, integer])), expected, rtol=1e-6)
    np.testing.assert_allclose(policy.entropy(), other.entropy(), rtol=1e-6)
    assert int(policy.sample(jax.random.key(0))[0]) == 0


def test_no_mask_for_a_distribution() -> None:
    with pytest.raises(TypeError, match="returned a TanhGaussian, which cannot be masked"):
        action_distribution(Discrete(2), TanhGaussian(DiagonalGaussian(jnp.zeros(2), jnp.zeros(2))), jnp.ones(2, bool))


# All four algorithms, on a toy environment that ends with NaN where an action is invalid or out of its space.


@pytest.mark.parametrize(
    ("name", "squashed"),
    [
        ("EpisodicHAEPO", False),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("PPO", True), ("GRPO", True), ("DPO", False))),
    ],
)
def test_a_dict_action_with_masks_trains(name: str, squashed: bool) -> None:
    settings = SMALL | {"learning_rate": 1e-2, "squash_actions": squashed, "state_dependent_std": squashed}
    algorithm = getattr(hx, name)(Controls(), **settings | ({"num_steps": 4} if name == "PPO" else {}))
    state, history = jax.jit(algorithm.train)(jax.random.key(0))
    assert int(state.status.invalid_episodes) == 0, "an invalid action was taken"
    assert np.all(np.isfinite(history["loss"]))
    first = float(np.mean(algorithm.evaluate(algorithm.init(jax.random.key(0)), episodes=512)["return"]))
    last = float(np.mean(algorithm.evaluate(state, episodes=512)["return"]))
    assert last > first + 0.5, (first, last)


def test_controls_is_what_it_is_said_to_be() -> None:
    env = hx.make_env(Controls())
    check_environment(env)
    assert action_size(env.action_space) == 2 + 5 + 2 and action_size(env.action_space, True) == 2 + 5 + 4
    unit = {"lever": jnp.int32(0), "dials": (jnp.array([1, 0]), jnp.array([3.0, -0.5]))}
    converted = to_env_action(env, unit)
    np.testing.assert_allclose(converted["dials"][1], [10.0, 2.5])  # clipped, then scaled
    assert converted["lever"] == 0 and converted["dials"][0].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("space", "output"),
    [
        (MultiDiscrete((2, 3)), (5,)),
        ((Discrete(2), Box(0.0, 1.0, (2, 2))), ((2,), ((2, 2), (2, 2)))),
        (Box(0.0, 1.0, ()), ((), ())),
    ],
)
@pytest.mark.parametrize("state_dependent_std", [False, True])
def test_the_default_network_has_an_output_for_every_space(space: Any, output: Any, state_dependent_std: bool) -> None:
    from haepo_jax.networks import default_network

    policy = default_network(Box(-1.0, 1.0, (3,)), space, (8,), "tanh", state_dependent_std=state_dependent_std)
    params, carry = policy.init(jax.random.key(0), jnp.zeros(3))
    _, found = policy.apply(params, carry, jnp.ones(3), jnp.bool_(True))
    assert jax.tree.map(lambda x: x.shape, found) == output
    distribution = action_distribution(space, found)
    assert np.isfinite(distribution.log_prob(distribution.sample(jax.random.key(0))))
    if isinstance(space, Box):  # both kinds start with a standard deviation of about 1
        np.testing.assert_allclose(found[1], 0.0, atol=0.1)
        far = policy.apply(params, carry, jnp.full(3, 50.0), jnp.bool_(True))[1]
        assert (float(far[1]) != float(found[1])) == state_dependent_std


def test_what_needs_continuous_actions_says_so() -> None:
    with pytest.raises(hx.HyperparameterError, match="squash_actions=true requires continuous actions, but Cart"):
        hx.PPO("CartPole-v1", squash_actions=True)
    with pytest.raises(hx.HyperparameterError, match="state_dependent_std=true requires continuous"):
        hx.HAEPO("CartPole-v1", state_dependent_std=True)
    with pytest.raises(hx.HyperparameterError, match="requires bounded actions, but those of toy/slider are unbounded"):
        hx.HAEPO(Slider((-np.inf, np.inf)), squash_actions=True)
