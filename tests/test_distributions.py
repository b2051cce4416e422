from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from haepo_jax.distributions import LOG_STD_MAX, LOG_STD_MIN, Categorical, DiagonalGaussian, action_distribution
from haepo_jax.spaces import Box, Discrete

RNG = np.random.default_rng(0)
LOGITS, OTHER_LOGITS = RNG.normal(size=(2, 3, 5)) * 3
MEAN, OTHER_MEAN, LOG_STD, OTHER_LOG_STD = RNG.uniform(-1, 1, (4, 3, 2))
ACTIONS = RNG.normal(size=(3, 2))


def categorical(logits: np.ndarray, mask: np.ndarray | None = None) -> Categorical:
    found = action_distribution(Discrete(logits.shape[-1]), jnp.asarray(logits, jnp.float32), mask)
    assert isinstance(found, Categorical)
    return found


def gaussian(mean: np.ndarray, log_std: np.ndarray, shape: tuple[int, ...] | None = None) -> DiagonalGaussian:
    outputs = jnp.asarray(mean, jnp.float32), jnp.asarray(log_std, jnp.float32)
    found = action_distribution(Box(-1.0, 1.0, mean.shape[-1:] if shape is None else shape), outputs)
    assert isinstance(found, DiagonalGaussian)
    return found


def test_categorical_equals_scipy() -> None:
    p, q = scipy.special.softmax(LOGITS, -1), scipy.special.softmax(OTHER_LOGITS, -1)
    policy, other = categorical(LOGITS), categorical(OTHER_LOGITS)
    chosen = np.array([0, 4, 2])
    expected = [scipy.stats.multinomial.logpmf(np.eye(5)[a], 1, row) for a, row in zip(chosen, p, strict=True)]
    np.testing.assert_allclose(policy.log_prob(jnp.asarray(chosen)), expected, rtol=1e-5)
    np.testing.assert_allclose(policy.entropy(), scipy.stats.entropy(p, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(policy.kl_to(other), scipy.stats.entropy(p, q, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(policy.mode(), np.argmax(LOGITS, -1))
    assert policy.mode().dtype == policy.sample(jax.random.key(0)).dtype == jnp.int32


def test_gaussian_equals_scipy() -> None:
    policy = gaussian(MEAN, LOG_STD)
    normal = scipy.stats.norm(MEAN, np.exp(LOG_STD))
    np.testing.assert_allclose(
        policy.log_prob(jnp.asarray(ACTIONS, jnp.float32)), normal.logpdf(ACTIONS).sum(-1), rtol=1e-5
    )
    np.testing.assert_allclose(policy.entropy(), normal.entropy().sum(-1), rtol=1e-5)
    np.testing.assert_allclose(policy.mode(), MEAN, rtol=1e-6)


def test_gaussian_kl_equals_the_integral() -> None:
    grid = np.linspace(-60, 60, 400_001)
    found = gaussian(MEAN, LOG_STD).kl_to(gaussian(OTHER_MEAN, OTHER_LOG_STD))
    for row in range(3):
        total = 0.0
        for i in range(2):
            p = scipy.stats.norm(MEAN[row, i], np.exp(LOG_STD[row, i]))
            q = scipy.stats.norm(OTHER_MEAN[row, i], np.exp(OTHER_LOG_STD[row, i]))
            total += np.trapezoid(p.pdf(grid) * (p.logpdf(grid) - q.logpdf(grid)), grid)
        np.testing.assert_allclose(found[row], total, rtol=1e-4)


def test_a_policy_has_no_divergence_from_itself() -> None:
    for policy in (categorical(LOGITS), gaussian(MEAN, LOG_STD)):
        np.testing.assert_array_equal(policy.kl_to(policy), np.zeros(3))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_samples_have_the_distribution_that_log_prob_tells(kind: str) -> None:
    """Frequencies, moments and the mean of -log p against the entropy, within five standard errors."""
    n = 40_000
    keys = jax.random.split(jax.random.key(1), n)
    if kind == "categorical":
        policy: Categorical | DiagonalGaussian = categorical(LOGITS[0] / 3)
        p = np.exp(np.asarray(policy.log_probs, np.float64))  # type: ignore[union-attr]
        samples = np.asarray(jax.vmap(policy.sample)(keys))
        frequency = np.bincount(samples, minlength=5) / n
        assert np.all(np.abs(frequency - p) < 5 * np.sqrt(p * (1 - p) / n))
    else:
        policy = gaussian(MEAN[0], LOG_STD[0])
        samples = np.asarray(jax.vmap(policy.sample)(keys))
        std = np.exp(LOG_STD[0])
        assert np.all(np.abs(samples.mean(0) - MEAN[0]) < 5 * std / np.sqrt(n))
        assert np.all(np.abs(samples.std(0) / std - 1) < 5 / np.sqrt(2 * n))
        assert abs(np.corrcoef(samples.T)[0, 1]) < 5 / np.sqrt(n)
    surprisal = -np.asarray(policy.log_prob(jnp.asarray(samples)), np.float64)
    assert abs(surprisal.mean() - float(policy.entropy())) < 5 * surprisal.std() / np.sqrt(n)


class TestActionMask:
    mask = np.array([True, False, True, False, False])
    policy = categorical(LOGITS[0], mask)

    def test_is_the_categorical_of_the_valid_actions(self) -> None:
        valid = scipy.special.log_softmax(LOGITS[0][self.mask])
        np.testing.assert_allclose(self.policy.log_probs[self.mask], valid, rtol=1e-5)
        np.testing.assert_allclose(self.policy.entropy(), -(np.exp(valid) * valid).sum(), rtol=1e-5)
        other = categorical(OTHER_LOGITS[0], self.mask)
        other_valid = scipy.special.log_softmax(OTHER_LOGITS[0][self.mask])
        expected = (np.exp(valid) * (valid - other_valid)).sum()
        np.testing.assert_allclose(self.policy.kl_to(other), expected, rtol=1e-4)

    def test_an_invalid_action_has_probability_zero_and_is_never_taken(self) -> None:
        assert np.all(np.exp(self.policy.log_probs)[~self.mask] == 0)
        samples = jax.vmap(self.policy.sample)(jax.random.split(jax.random.key(0), 10_000))
        assert set(np.unique(samples).tolist()) == {0, 2}

    def test_not_even_where_the_network_wants_it(self) -> None:
        policy = categorical(np.array([0.0, 1e6, 0.0, 1e6, 1e6]), self.mask)
        assert int(policy.mode()) in (0, 2)
        samples = jax.vmap(policy.sample)(jax.random.split(jax.random.key(0), 1000))
        assert set(np.unique(samples).tolist()) == {0, 2}

    def test_gradients_are_finite_and_zero_for_invalid_actions(self) -> None:
        def everything(logits: jax.Array) -> jax.Array:
            policy = action_distribution(Discrete(5), logits, self.mask)
            return policy.entropy() + policy.log_prob(jnp.int32(2)) + self.policy.kl_to(policy)  # type: ignore[arg-type]

        for logits in (LOGITS[0], np.array([0.0, 1e6, -1e6, -1e6, 1e6]), np.array([0.0, -np.inf, 1.0, np.inf, np.nan])):
            gradient = np.asarray(jax.grad(everything)(jnp.asarray(logits, jnp.float32)))
            assert np.all(np.isfinite(gradient))
            assert np.all(gradient[~self.mask] == 0)
        assert np.any(np.asarray(jax.grad(everything)(jnp.asarray(LOGITS[0], jnp.float32)))[self.mask] != 0)

    def test_one_valid_action_and_none(self) -> None:
        """None at all is what a dead step stores, and an agent that has finished may have: action 0 is then certain."""
        single = categorical(LOGITS[0], np.arange(5) == 3)
        assert float(single.entropy()) == 0
        assert float(single.log_prob(jnp.int32(3))) == 0
        none = categorical(LOGITS[0], np.zeros(5, bool))
        assert int(none.sample(jax.random.key(0))) == int(none.mode()) == 0
        assert float(none.entropy()) == float(none.log_prob(jnp.int32(0))) == 0
        for value in (none.entropy(), none.log_prob(jnp.int32(0)), none.kl_to(single), single.kl_to(none)):
            assert np.isfinite(value)

    def test_a_mask_for_every_step(self) -> None:
        masks = RNG.random((3, 5)) < 0.5
        masks[:, 0] = True
        together = categorical(LOGITS, masks)
        for row in range(3):
            np.testing.assert_allclose(
                together.log_probs[row], categorical(LOGITS[row], masks[row]).log_probs, rtol=1e-6
            )


def test_a_policy_may_rule_actions_out_with_infinite_logits() -> None:
    logits = np.array([0.0, 1.0, -np.inf])
    policy = categorical(logits)
    valid = scipy.special.log_softmax(logits[:2])
    np.testing.assert_allclose(policy.entropy(), -(np.exp(valid) * valid).sum(), rtol=1e-5)
    np.testing.assert_allclose(policy.log_prob(jnp.int32(1)), valid[1], rtol=1e-5)
    assert float(policy.kl_to(policy)) == 0
    gradient = jax.grad(lambda x: action_distribution(Discrete(3), x).entropy())(jnp.asarray(logits, jnp.float32))
    assert np.all(np.isfinite(gradient))
    assert float(gradient[0]) != 0


def test_a_network_that_has_gone_wrong_is_not_papered_over() -> None:
    assert np.isnan(categorical(np.array([0.0, np.nan, 1.0])).log_prob(jnp.int32(0)))


def test_gradients_of_the_categorical_are_those_of_the_softmax() -> None:
    gradient = jax.grad(lambda x: action_distribution(Discrete(5), x).log_prob(jnp.int32(1)))(
        jnp.asarray(LOGITS[0], jnp.float32)
    )
    np.testing.assert_allclose(gradient, np.eye(5)[1] - scipy.special.softmax(LOGITS[0]), rtol=1e-4, atol=1e-6)


def test_log_std_is_kept_in_range() -> None:
    policy = gaussian(np.zeros((4, 1)), np.array([[-50.0], [50.0], [LOG_STD_MIN + 0.5], [np.inf]]))
    expected = [[LOG_STD_MIN], [LOG_STD_MAX], [LOG_STD_MIN + 0.5], [LOG_STD_MAX]]
    np.testing.assert_allclose(policy.log_std, expected)
    assert np.all(np.isfinite(policy.log_prob(jnp.zeros((4, 1)))))


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_actions_of_any_shape(shape: tuple[int, ...]) -> None:
    """One step, or a sequence; log-std once for all steps, or one for each. Entries are independent."""
    size = int(np.prod(shape))
    mean, log_std = RNG.uniform(-1, 1, (2, 7, *shape))
    space = Box(-1.0, 1.0, shape)
    single = action_distribution(space, (jnp.asarray(mean[0]), jnp.asarray(log_std[0])))
    action = single.sample(jax.random.key(0))
    assert action.shape == (size,)
    expected = scipy.stats.norm(mean[0].ravel(), np.exp(log_std[0]).ravel()).logpdf(np.asarray(action)).sum()
    np.testing.assert_allclose(single.log_prob(action), expected, rtol=1e-4)
    for stds in (log_std, log_std[0]):
        sequence = action_distribution(space, (jnp.asarray(mean), jnp.asarray(stds)))
        actions = np.asarray(sequence.sample(jax.random.key(1)))
        assert actions.shape == (7, size)
        normal = scipy.stats.norm(mean.reshape(7, size), np.exp(np.broadcast_to(stds, mean.shape)).reshape(7, size))
        np.testing.assert_allclose(sequence.log_prob(jnp.asarray(actions)), normal.logpdf(actions).sum(-1), rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_probabilities_are_at_least_float32(dtype: jnp.dtype) -> None:
    discrete = action_distribution(Discrete(3), jnp.zeros(3, dtype))
    continuous = action_distribution(Box(-1.0, 1.0, (2,)), (jnp.zeros(2, dtype), jnp.zeros(2, dtype)))
    assert discrete.log_prob(jnp.int32(0)).dtype == continuous.log_prob(jnp.zeros(2)).dtype == jnp.float32


def test_distributions_are_pytrees() -> None:
    stacked = jax.vmap(lambda x: action_distribution(Discrete(5), x))(jnp.asarray(LOGITS, jnp.float32))
    np.testing.assert_allclose(stacked.entropy(), categorical(LOGITS).entropy(), rtol=1e-6)
