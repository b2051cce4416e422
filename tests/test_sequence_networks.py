"""One step at a time and a whole sequence at once are the same function, gradients included."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haepo_jax as hx
from haepo_jax.sequence_networks import SequencePolicy, sequence_policy
from haepo_jax.spaces import Box, Discrete
from tests.toy_envs import Drift, equations

KINDS = ("gru", "lstm", "transformer")
SPACE = Box(-np.inf, np.inf, (3,))
ACTIONS = Discrete(4)
BEFORE = 5
"""Steps before the sequence that is compared, so that it begins in mid-episode."""


def policy_of(kind: str, context: int = 64, action_space: Any = ACTIONS) -> SequencePolicy:
    policy = sequence_policy(kind, SPACE, action_space, hidden_sizes=(8, 8), num_heads=2, context=context)
    assert isinstance(policy, SequencePolicy)
    return policy


def shaken(params: Any) -> Any:
    """Away from the start, where the outputs are nearly equal whatever is seen."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(structure, [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)])  # noqa: B905


def setting(policy: SequencePolicy, length: int) -> tuple[Any, Any, jax.Array]:
    observations = jax.random.normal(jax.random.key(2), (length, 3))
    params, carry = policy.init(jax.random.key(0), observations[0])
    return shaken(params), carry, observations


def stepwise(policy: SequencePolicy, params: Any, carry: Any, observations: Any, is_first: Any) -> tuple[Any, Any]:
    return jax.lax.scan(lambda carry, now: policy.apply(params, carry, *now), carry, (observations, is_first))


@pytest.mark.parametrize(
    ("kind", "length", "context", "starts"),
    [
        ("gru", 9, 0, [4, 8, 10]),
        ("lstm", 9, 0, [4, 8, 10]),
        ("transformer", 9, 64, [4, 8, 10]),
        ("transformer", 40, 7, [3, 30]),
        *(
            pytest.param("transformer", *case, marks=pytest.mark.slow)
            for case in ((20, 4, []), (9, 4, list(range(20))), (1, 4, []))
        ),
    ],
)
def test_steps_and_a_sequence_agree(kind: str, length: int, context: int, starts: list[int]) -> None:
    """Whatever the sequence goes on from, and wherever in it an episode starts."""
    policy = policy_of(kind, context)
    params, carry, observations = setting(policy, BEFORE + length + 3)
    is_first = jnp.isin(jnp.arange(len(observations)), jnp.array([0, *starts]))

    @jax.jit
    def run(params: Any) -> Any:
        """Outputs, what follows them, and gradients, of a sequence that begins at step BEFORE and of single steps."""
        start, _ = stepwise(policy, params, carry, observations[:BEFORE], is_first[:BEFORE])
        start = jax.lax.stop_gradient(start)
        middle = slice(BEFORE, BEFORE + length)

        def outputs(params: Any, together: bool) -> Any:
            function = policy.apply if together else lambda *x: stepwise(policy, *x)
            end, output = function(params, start, observations[middle], is_first[middle])
            return jnp.sum(jnp.sin(output + jnp.arange(length)[:, None])), (output, end)

        found = []
        for together in (True, False):
            gradient, (output, end) = jax.grad(outputs, has_aux=True)(params, together)
            after = stepwise(policy, params, end, observations[middle.stop :], is_first[middle.stop :])[1]
            found.append((output, after, gradient))
        return found

    together, alone = run(params)
    assert np.ptp(np.asarray(together[0]), axis=0).min() > 0.05 or length == 1, "the network does not see its input"
    for x, y in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * np.abs(y).max())


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_remembered_across_the_start_of_an_episode_and_something_within(kind: str) -> None:
    policy = policy_of(kind)
    params, carry, observations = setting(policy, 8)
    changed = observations.at[2].add(1.0)
    is_first = jnp.isin(jnp.arange(8), jnp.array([0, 5]))
    one, other = (policy.apply(params, carry, x, is_first)[1] for x in (observations, changed))
    differs = np.abs(np.asarray(one - other)).max(axis=1) > 1e-4
    np.testing.assert_array_equal(differs, [False, False, True, True, True, False, False, False])


def test_a_context_bounds_what_a_block_sees() -> None:
    policy = sequence_policy("transformer", SPACE, ACTIONS, hidden_sizes=(8,), num_heads=2, context=3)
    params, carry, observations = setting(policy, 8)
    is_first = jnp.arange(8) == 0
    one, other = (policy.apply(params, carry, x, is_first)[1] for x in (observations, observations.at[2].add(1.0)))
    differs = np.abs(np.asarray(one - other)).max(axis=1) > 1e-5
    np.testing.assert_array_equal(differs, [False, False, True, True, True, False, False, False])


def test_a_transformer_does_not_scan_over_time_and_looks_at_no_cache_where_there_is_none() -> None:
    """A constant whose first flag is set tells so; anything else may go on from the carry."""
    policy = policy_of("transformer", context=11)
    params, carry, observations = setting(policy, 9)
    constant = np.arange(9) == 0
    run = lambda is_first: jax.vmap(policy.apply, (None, None, 0, None))(params, carry, observations[None], is_first)  # noqa: E731
    for is_first, seen in ((constant, 9), (jnp.asarray(constant), 9 + 11)):
        found = equations(jax.make_jaxpr(lambda: run(is_first)[1])())  # noqa: B023
        assert not any(equation.primitive.name in ("scan", "while") for equation in found)
        logits = [e.outvars[0].aval.shape for e in found if e.primitive.name == "exp" and e.outvars[0].aval.ndim >= 3]
        assert {shape[-1] for shape in logits} == {seen}, logits
    np.testing.assert_allclose(run(constant)[1], run(jnp.asarray(constant))[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("action_space", [None, Box(-1.0, 1.0, (2,))], ids=["value", "box"])
def test_values_and_continuous_actions(kind: str, action_space: Any) -> None:
    policy = policy_of(kind, action_space=action_space)
    params, carry, observations = setting(policy, 6)
    output = policy.apply(params, carry, observations, jnp.arange(6) == 0)[1]
    assert jax.tree.map(jnp.shape, output) == ((6,) if action_space is None else ((6, 2), (2,)))


SMALL: dict[str, Any] = {
    "num_envs": 4, "num_epochs": 2, "num_minibatches": 2, "total_steps": 1000, "eval_episodes": 0, "hidden_sizes": (8,),
    "num_heads": 2,
}  # fmt: skip


@pytest.mark.slow
def test_ppo_learns_what_was_recorded() -> None:
    """Segments that begin within an episode, in which episodes end; seeds side by side."""
    algo = hx.PPO(Drift(horizon=6), network="transformer", num_steps=5, context=3, **SMALL)

    @jax.jit
    @jax.vmap
    def run(key: jax.Array) -> Any:
        state = algo.init(key)
        state = dataclasses.replace(state, params=shaken(state.params))
        envs = algo.collect(state, jax.random.key(1))[1]
        state = dataclasses.replace(state, extra=dataclasses.replace(state.extra, envs=envs))
        segment, envs = algo.collect(state, jax.random.key(2))
        batch = algo.batch(state, algo.sequences(state, segment, envs), None)
        inputs = batch.observation, batch.is_first, batch.action_mask, batch.carry
        distribution, values = algo.outputs(state.params, *inputs)
        found = distribution.log_prob(batch.action), values
        return batch.is_first, (batch.log_prob, batch.value), found

    is_first, recorded, found = run(jax.random.split(jax.random.key(0), 2))
    assert is_first.any(axis=(0, 1)).any() and not is_first[:, :, 0].all(), "no segment begins within an episode"
    for x, y in zip(recorded, found, strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6)


def test_complete_episodes_are_as_recorded() -> None:
    algo = hx.EpisodicHAEPO(Drift(horizon=6), network="transformer", group_size=2, **SMALL)

    @jax.jit
    @jax.vmap
    def run(key: jax.Array) -> Any:
        state = algo.init(key)
        state = dataclasses.replace(state, params=shaken(state.params))
        steps, *_ = algo.collect(state, jax.random.key(3))
        found = algo.sequence_distribution(state.params, steps.observation, steps).log_prob(steps.action)
        return steps.mask, steps.extras, found

    mask, recorded, found = map(np.asarray, run(jax.random.split(jax.random.key(0), 2)))
    assert mask.sum(1).max() > 2, "no episode has a history"
    np.testing.assert_allclose(found[mask], recorded[mask], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "gpt"}, "network='gpt' must be one of mlp, gru, lstm, transformer"),
        ({"network": "gru", "hidden_sizes": ()}, r"hidden_sizes=\[\] must have at least one size for network=gru"),
        ({"network": "transformer", "hidden_sizes": (64, 32)}, r"hidden_sizes=\[64, 32\] must be equal"),
        ({"network": "transformer", "hidden_sizes": (60,)}, "=60 is not a multiple of 2 \\* num_heads=8; .* 56 or 64"),
        ({"network": "transformer", "context": 0}, "context=0 is out of range"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit(settings: Any, message: str) -> None:
    with pytest.raises(hx.HyperparameterError, match=message):
        hx.HAEPO(Drift(), **settings)


def test_segments_of_a_recurrent_network_are_not_cut() -> None:
    with pytest.raises(hx.HyperparameterError, match="num_envs=4 is not a multiple of num_minibatches=3"):
        hx.PPO(Drift(), network="gru", num_envs=4, num_steps=6, num_minibatches=3)


def test_a_network_is_part_of_an_algorithms_identity() -> None:
    algo = hx.HAEPO(Drift(), network="transformer")
    assert dataclasses.replace(algo).policy_network == algo.policy_network
    assert hash(algo.policy_network) == hash(dataclasses.replace(algo).policy_network)
