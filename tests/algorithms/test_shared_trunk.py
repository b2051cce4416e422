"""`shared_trunk`: policy and value function as one network with two heads."""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haepo_jax as hx
from haepo_jax.algorithms.fields import HyperparameterError
from haepo_jax.algorithms.state import InitialPolicy

SMALL: dict[str, Any] = {
    "num_envs": 4, "num_steps": 6, "num_epochs": 2, "num_minibatches": 1, "hidden_sizes": (8, 8), "total_steps": 96,
    "log_points": 2, "eval_episodes": 2, "num_heads": 2,
}  # fmt: skip


def make(name: str, env: str = "CartPole-v1", **settings: Any) -> Any:
    own = {"group_size": 2} if name == "HAEPO" else {}
    return getattr(hx, name)(env, shared_trunk=True, **{**SMALL, **own, **settings})


@pytest.mark.parametrize("network", ["mlp", "gru", pytest.param("transformer", marks=pytest.mark.slow)])
def test_the_policy_is_that_of_its_own_and_the_value_linear_in_its_last_layer(network: str) -> None:
    algo = make("PPO", network=network)
    apart = hx.PPO("CartPole-v1", **SMALL, network=network)
    params, state = algo.init(jax.random.key(0)).params, apart.init(jax.random.key(0))
    assert jax.tree.map(jnp.shape, params["policy"]) == jax.tree.map(jnp.shape, state.params["policy"])
    assert jax.tree.map(jnp.shape, params["value"]) == {"params": {"kernel": (8, 1), "bias": (1,)}}

    observation, first = jnp.array([0.1, -0.2, 0.3, -0.4]), jnp.bool_(True)
    carry = algo.actor_critic.init(jax.random.key(0), observation)[1]
    after, (output, value) = algo.actor_critic.apply(params, carry, observation, first)
    own_carry, own = algo.policy_network.apply(params["policy"], algo.initial_carry(), observation, first)
    np.testing.assert_array_equal(output, own)
    chex.assert_trees_all_equal(after[0], own_carry)
    # Linear: twice the weights, twice the value.
    doubled = {**params, "value": jax.tree.map(lambda x: 2 * x, params["value"])}
    np.testing.assert_allclose(algo.actor_critic.value_of(doubled, carry, observation, first)[1], 2 * value, rtol=1e-6)


def test_hidden_layers_are_computed_once() -> None:
    def products(algo: Any) -> int:
        params, carry = algo.actor_critic.init(jax.random.key(0), jnp.zeros(4))
        return str(jax.make_jaxpr(algo.actor_critic.apply)(params, carry, jnp.zeros(4), True)).count("dot_general[")

    assert products(make("PPO")) == 4
    assert products(hx.PPO("CartPole-v1", **SMALL)) == 6


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("PPO", "mlp"),
        ("HAEPO", "gru"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("HAEPO", "mlp"), ("PPO", "gru"), ("HAEPO", "transformer"), ("PPO", "transformer"))
        ),
    ],
)
def test_what_is_learnt_from_is_what_was_played(name: str, network: str) -> None:
    """Log-probabilities and values of a segment in sequence are those recorded step by step, from mid-episode too."""
    algo = make(name, network=network)
    state, collect = algo.init(jax.random.key(0)), jax.jit(algo.collect)
    state = dataclasses.replace(
        state, extra=dataclasses.replace(state.extra, envs=collect(state, jax.random.key(2))[1])
    )
    segment, _ = collect(state, jax.random.key(1))
    assert not segment.is_first[0].any(), "no segment begins within an episode"
    steps = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (segment.steps, segment.is_first))
    inputs = steps[0].observation, steps[1], None, state.extra.envs.carry
    distribution, values = jax.jit(algo.outputs)(state.params, *inputs)
    log_prob, value = steps[0].extras
    np.testing.assert_allclose(distribution.log_prob(steps[0].action), log_prob, atol=2e-6)
    if network == "mlp":  # without a carry values are estimated after the rollout
        assert np.isfinite(algo.evaluate(state, episodes=2)["return"]).all()
    else:
        np.testing.assert_allclose(values, value, atol=2e-6)


def test_the_value_loss_reaches_the_trunk() -> None:
    algo = make("PPO", entropy_coef=0.0)
    state = algo.init(jax.random.key(0))
    segment, envs = algo.collect(state, jax.random.key(1))
    batch = algo.batch(state, algo.sequences(state, segment, envs), None)
    gradients = [
        jax.grad(lambda params, c=coef: algo.replace(value_coef=c).loss(params, batch)[0])(state.params)
        for coef in (0.0, 0.5)
    ]
    first = [g["policy"]["params"]["MLP_0"]["Dense_0"]["kernel"] for g in gradients]
    assert float(jnp.max(jnp.abs(first[0] - first[1]))) > 1e-3


@pytest.mark.slow
def test_pixels_and_continuous_actions() -> None:
    algo = make("HAEPO", "Pendulum-v1", squash_actions=True)
    state, metrics = jax.jit(algo.train_step)(algo.init(jax.random.key(0)))
    assert np.isfinite(metrics["loss"]) and not state.status.diverged
    pixels = make("HAEPO", "Breakout-MinAtar")
    jax.eval_shape(pixels.train_step, jax.eval_shape(pixels.init, jax.random.key(0)))


def test_it_starts_from_a_policy_without_a_value_function() -> None:
    start = hx.EpisodicHAEPO("CartPole-v1", hidden_sizes=(8, 8)).init(jax.random.key(3))
    params = make("PPO").init(jax.random.key(0), InitialPolicy(start.params, start.normalizer)).params
    chex.assert_trees_all_equal(params["policy"], start.params)


@pytest.mark.parametrize("given", ["policy", "value"])
def test_own_networks_are_refused(given: str) -> None:
    own = hx.PPO("CartPole-v1").default_network(hx.make_env("CartPole-v1").action_space if given == "policy" else None)
    with pytest.raises(HyperparameterError, match=f"shared_trunk=true requires the default networks; remove {given}="):
        make("PPO", **{given: own})
