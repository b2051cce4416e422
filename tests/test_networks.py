from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import haepo_jax as hx
from haepo_jax import networks
from haepo_jax.distributions import LOG_STD_MAX, LOG_STD_MIN, action_distribution
from haepo_jax.networks import (
    Encoder,
    LinenPolicy,
    NNXPolicy,
    as_policy,
    default_network,
    each_step,
    orthogonal,
)
from haepo_jax.spaces import Box, Discrete
from tests.toy_envs import GRU, Count, Drift, Pair

RNG = np.random.default_rng(0)
LENGTH = 4

# A space, and LENGTH observations of it.
SPACES: dict[str, tuple[Any, Any]] = {
    "vector": (Box(-np.inf, np.inf, (3,)), RNG.normal(size=(LENGTH, 3)).astype(np.float32)),
    "scalar": (Box(-np.inf, np.inf, ()), RNG.normal(size=LENGTH).astype(np.float32)),
    "matrix": (Box(0.0, 1.0, (8, 5)), RNG.random((LENGTH, 8, 5)).astype(np.float32)),
    "minatar": (Box(0.0, 1.0, (10, 10, 4)), RNG.random((LENGTH, 10, 10, 4)).astype(np.float32)),
    "large image": (Box(0, 255, (30, 40, 3), np.uint8), RNG.integers(0, 256, (LENGTH, 30, 40, 3)).astype(np.uint8)),
    "tiny image": (Box(0, 255, (2, 2, 3), np.uint8), RNG.integers(0, 256, (LENGTH, 2, 2, 3)).astype(np.uint8)),
    "narrow image": (Box(0.0, 1.0, (40, 2, 1)), RNG.random((LENGTH, 40, 2, 1)).astype(np.float32)),
    "discrete": (Discrete(6), RNG.integers(0, 6, LENGTH).astype(np.int32)),
    "integers": (Box(0, (1, 9, 50), (3,), np.int32), RNG.integers(0, (2, 10, 51), (LENGTH, 3)).astype(np.int32)),
    "flags": (Box(0, 1, (5,), np.bool_), RNG.random((LENGTH, 5)) < 0.5),
}
SPACES["nested"] = tuple(  # type: ignore[assignment]
    {
        "z": SPACES["vector"][i],
        "a": (SPACES["discrete"][i], {"image": SPACES["minatar"][i]}),
        "m": SPACES["integers"][i],
    }
    for i in range(2)
)
FIRST = jnp.arange(LENGTH) == 0


@pytest.mark.parametrize("name", SPACES)
def test_one_step_and_a_sequence_give_the_same_outputs(name: str) -> None:
    space, observations = SPACES[name]
    networks = [(default_network(space, Discrete(3), (8,), "relu"), (3,))]
    if name == "vector":
        networks.append((default_network(space, None, (8,), "tanh"), ()))
    for network, shape in networks:

        @jax.jit
        def outputs(observations: Any, network: Any = network) -> Any:
            steps = [jax.tree.map(lambda x: x[t], observations) for t in (0, LENGTH - 1)]  # noqa: B023
            params, carry = network.init(jax.random.key(0), steps[0])
            # Away from the start, where the logits are nearly equal whatever is seen.
            params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), params)
            alone = [network.apply(params, carry, step, jnp.bool_(True)) for step in steps]
            return network.apply(params, carry, observations, FIRST), alone

        (carry, together), alone = outputs(observations)
        assert carry == ()
        assert together.shape == (LENGTH, *shape)
        assert together.dtype == jnp.float32
        for t, (_, output) in zip((0, LENGTH - 1), alone, strict=True):
            np.testing.assert_allclose(output, together[t], rtol=1e-4, atol=1e-5)
        assert np.ptp(np.asarray(together), axis=0).min() > 1e-3, "the network does not see what it is given"


def encode(space: Any, observation: Any) -> np.ndarray[Any, Any]:
    encoder = Encoder(space)
    return np.asarray(encoder.apply(encoder.init(jax.random.key(0), observation), observation))


def test_a_discrete_observation_becomes_one_hot() -> None:
    np.testing.assert_array_equal(encode(Discrete(4), jnp.array([2, 0])), [[0, 0, 1, 0], [1, 0, 0, 0]])


def test_integers_are_scaled_by_their_bounds() -> None:
    np.testing.assert_allclose(encode(Box(0, (1, 10, 5), (3,), np.int32), jnp.array([1, 5, 0])), [1, 0, -1])
    np.testing.assert_allclose(encode(Box(0, 255, (2,), np.uint8), jnp.array([255, 0], jnp.uint8)), [1, -1])
    unbounded = Box(-np.inf, np.inf, (2,), np.int32)
    np.testing.assert_allclose(encode(unbounded, jnp.array([70, -3])), [70, -3])


def test_floats_are_left_alone_and_parts_are_joined_in_the_order_of_their_leaves() -> None:
    space = {"b": Box(0.0, 9.0, (2, 2)), "a": (Discrete(2), Box(-1.0, 1.0, ()))}
    observation = {"b": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "a": (jnp.int32(1), jnp.float32(-7.0))}
    policy = default_network(space, Discrete(2), (3,), "tanh")
    np.testing.assert_array_equal(encode(policy.module.observation_space, observation), [0, 1, -7, 1, 2, 3, 4])  # type: ignore[attr-defined]
    assert hash(policy) == hash(default_network(space, Discrete(2), (3,), "tanh"))


def test_layer_norm_comes_before_the_activation() -> None:
    """Against NumPy, from the parameters."""
    space, observations = SPACES["vector"]
    policy = default_network(space, Discrete(3), (5,), "tanh", layer_norm=True)
    params, carry = policy.init(jax.random.key(0), observations[0])
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), params)
    layers = jax.tree.map(np.float64, params["params"]["MLP_0"])
    hidden = observations @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"]
    normed = (hidden - hidden.mean(1, keepdims=True)) / np.sqrt(hidden.var(1, keepdims=True) + 1e-6)
    hidden = np.tanh(normed * layers["LayerNorm_0"]["scale"] + layers["LayerNorm_0"]["bias"])
    expected = hidden @ layers["Dense_1"]["kernel"] + layers["Dense_1"]["bias"]
    np.testing.assert_allclose(policy.apply(params, carry, observations, FIRST)[1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_the_default_gaussian_starts_at_deviation_1_and_stays_in_range(shape: tuple[int, ...]) -> None:
    space, observations = SPACES["vector"]
    actions = Box(-1.0, 1.0, shape)
    policy = default_network(space, actions, (8,), "tanh")
    params, _ = policy.init(jax.random.key(0), observations[0])
    start = action_distribution(actions, policy.apply(params, (), observations[0], FIRST[0])[1])
    np.testing.assert_allclose(start.log_std, np.zeros(math.prod(shape)), atol=1e-6)  # type: ignore[union-attr]
    sequence = action_distribution(actions, policy.apply(params, (), observations, FIRST)[1])
    taken = sequence.sample(jax.random.key(0))
    assert taken.shape == (LENGTH, math.prod(shape))
    assert sequence.log_prob(taken).shape == (LENGTH,)
    for raw in (-100.0, 100.0):
        extreme = {"params": {**params["params"], "raw_log_std": jnp.full(math.prod(shape), raw)}}
        log_std = policy.apply(extreme, (), observations[0], FIRST[0])[1][1]
        np.testing.assert_allclose(log_std, LOG_STD_MIN if raw < 0 else LOG_STD_MAX, rtol=1e-6)


def test_the_default_policy_starts_with_nearly_equal_logits() -> None:
    space, observations = SPACES["vector"]
    policy = default_network(space, Discrete(4), (8,), "tanh")
    params, _ = policy.init(jax.random.key(0), observations[0])
    probabilities = jax.nn.softmax(policy.apply(params, (), observations, FIRST)[1])
    np.testing.assert_allclose(probabilities, 0.25, atol=0.01)


@pytest.mark.parametrize("shape", [(16, 16), (3, 16), (16, 3), (4, 1)])
def test_orthogonal_weights(shape: tuple[int, int]) -> None:
    """Orthonormal rows or columns times the gain, for every seed of a batch; of no preferred direction."""
    keys = jax.random.split(jax.random.key(0), 500)
    found = np.asarray(jax.jit(jax.vmap(lambda key: orthogonal(2.0)(key, shape)))(keys), np.float64)
    tall = found if shape[0] >= shape[1] else np.swapaxes(found, 1, 2)
    np.testing.assert_allclose(
        np.swapaxes(tall, 1, 2) @ tall, np.broadcast_to(4 * np.eye(min(shape)), (500, *[min(shape)] * 2)), atol=1e-4
    )
    # Entries of a uniformly random direction: mean 0, mean square 1 / long; 500 draws of each.
    assert np.abs(found.mean(0)).max() < 5 * 2 / np.sqrt(max(shape) * 500)
    np.testing.assert_allclose((found**2).mean(0), 4 / max(shape), rtol=0.5)


# Policies of one's own.


class Linear(nn.Module):
    size: int

    @nn.compact
    def __call__(self, observation: Any) -> Any:
        return nn.Dense(self.size)(observation)


class LinearNNX(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layer = nnx.Linear(2, 3, rngs=rngs)

    def __call__(self, observation: Any) -> Any:
        return self.layer(observation)


class DropoutNNX(LinearNNX):
    def __init__(self, rngs: nnx.Rngs) -> None:
        super().__init__(rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)


class KeywordNNX(LinearNNX):
    def __init__(self, *, rngs: nnx.Rngs) -> None:
        super().__init__(rngs)


def test_an_nnx_policy_takes_rngs_by_position_or_by_name() -> None:
    def by_position(rngs: nnx.Rngs, /) -> nnx.Module:
        return LinearNNX(rngs)

    for create in (LinearNNX, KeywordNNX, lambda r: LinearNNX(r), by_position, functools.partial(KeywordNNX)):
        policy = as_policy(create)
        params, carry = policy.init(jax.random.key(0), jnp.zeros(2))
        _, output = policy.apply(params, carry, jnp.ones(2), jnp.bool_(True))
        np.testing.assert_allclose(output, LinearNNX(nnx.Rngs(jax.random.key(0)))(jnp.ones(2)), rtol=1e-6)


def test_what_may_be_passed_as_a_policy() -> None:
    assert as_policy(Linear(3)) == LinenPolicy(Linear(3))
    assert as_policy(LinearNNX) == NNXPolicy(LinearNNX)
    assert as_policy(Pair(3)) == Pair(3)
    assert as_policy(as_policy(Linear(3))) == LinenPolicy(Linear(3))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda: LinearNNX(nnx.Rngs(0)),
            r"policy=LinearNNX is an NNX module that is already initialised.*lambda rngs",
        ),
        (lambda: Linear, "policy=Linear is a Flax Linen class; pass an instance"),
        (lambda: nn.Sequential([nn.Dense(2)]), "policy=Sequential must be hashable: give its attributes as tuples"),
        (lambda: 3, "policy=3 must be"),
        (lambda: "mlp", "policy='mlp' must be"),
    ],
)
def test_what_may_not(wrong: Any, message: str) -> None:
    for build in (
        as_policy,
        lambda policy: hx.HAEPO(Drift(), policy=policy),
        lambda policy: hx.PPO(Drift(), value=policy),
    ):
        with pytest.raises(TypeError, match=message):
            build(wrong())


def test_an_nnx_policy_with_random_state_is_refused() -> None:
    policy = as_policy(DropoutNNX)
    params, _ = policy.init(jax.random.key(0), jnp.zeros(2))
    with pytest.raises(TypeError, match=r"only have nnx.Param.*Dropout"):
        policy.apply(params, (), jnp.zeros(2), jnp.bool_(True))


def test_a_linen_policy_with_statistics_is_refused() -> None:
    policy = as_policy(nn.Sequential((nn.BatchNorm(use_running_average=False), nn.Dense(3))))
    with pytest.raises(TypeError, match="only have params, not batch_stats: no BatchNorm"):
        policy.init(jax.random.key(0), jnp.zeros((4, 2)))


def test_every_key_gives_an_nnx_policy_other_weights() -> None:
    params = jax.vmap(lambda key: as_policy(LinearNNX).init(key, jnp.zeros(2))[0])(
        jax.random.split(jax.random.key(0), 2)
    )
    kernel = np.asarray(params["layer"]["kernel"][...])
    assert kernel.shape == (2, 2, 3)
    assert not np.allclose(kernel[0], kernel[1])


SMALL = {"num_envs": 4, "num_epochs": 2, "num_minibatches": 2, "total_steps": 1000, "eval_episodes": 0}


def updated(algo: Any, more: Any = lambda state: None) -> Any:
    """Trains two updates and returns `more(state)`, compiled with them."""

    @jax.jit
    def run(key: jax.Array) -> Any:
        start = algo.init(key)
        state, metrics = jax.lax.scan(lambda state, _: algo.train_step(state), start, length=2)
        moved = jax.tree.map(lambda x, y: jnp.max(jnp.abs(x - y)), start.params, state.params)
        return moved, metrics, more(state)

    moved, metrics, rest = run(jax.random.key(0))
    assert all(np.all(np.isfinite(value)) for name, value in metrics.items() if not name.startswith("episode")), metrics
    assert all(distance > 0 for distance in jax.tree.leaves(moved)), moved
    return rest


@pytest.mark.parametrize("policy", [Linear(3), Pair(3)], ids=["linen", "pair"])
def test_own_policies_train_on_episodes(policy: Any) -> None:
    updated(hx.EpisodicHAEPO(Drift(horizon=1), policy=policy, group_size=2, **SMALL))


def test_own_policies_train_with_ppo() -> None:
    """A policy made by a function of rngs, and a value function that is recurrent although the policy is not."""
    policy = lambda rngs: LinearNNX(rngs)  # noqa: E731
    updated(hx.PPO(Drift(horizon=3), policy=policy, value=GRU(0), num_steps=4, **SMALL))


class TestRecurrent:
    """A sequence gives what was recorded step by step: the carry starts anew with each episode, and only then."""

    def test_trains_on_episodes(self) -> None:
        algo = hx.EpisodicHAEPO(Drift(horizon=3), policy=GRU(3), group_size=2, **{**SMALL, "num_envs": 8})

        def both(state: Any) -> Any:
            steps, *_ = algo.collect(state, jax.random.key(3))
            observation = algo.normalized(state.normalizer, steps.observation)
            found = algo.sequence_distribution(state.params, observation, steps).log_prob(steps.action)
            return steps.mask, steps.extras, found

        mask, recorded, found = map(np.asarray, updated(algo, both))
        assert mask.sum(0).max() == 3, "no episode has a history"
        np.testing.assert_allclose(found[mask], recorded[mask], rtol=1e-5, atol=1e-6)

    def test_trains_with_ppo(self) -> None:
        algo = hx.PPO(Drift(horizon=3), policy=GRU(3), value=GRU(0), num_steps=5, **SMALL)

        def both(state: Any) -> Any:
            segment, envs = algo.collect(state, jax.random.key(1))
            batch = algo.batch(state, algo.sequences(state, segment, envs), None)
            inputs = batch.observation, batch.is_first, batch.action_mask, batch.carry
            distribution, values = algo.outputs(state.params, *inputs)
            return (
                batch.is_first,
                batch.carry,
                (batch.log_prob, batch.value),
                (distribution.log_prob(batch.action), values),
            )

        is_first, carry, recorded, found = updated(algo, both)
        assert np.any(np.asarray(carry[0])[~np.asarray(is_first[:, 0])] != 0), "no segment begins within an episode"
        assert is_first.sum() > 4
        for name, x, y in zip(("log-probability", "value"), recorded, found, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6, err_msg=name)

    def test_minibatches_of_ppo_are_whole_sequences(self) -> None:
        algo = hx.PPO(Count(), policy=GRU(2), value=GRU(0), num_steps=6, num_envs=4, num_minibatches=3)
        with pytest.raises(
            hx.HyperparameterError, match=r"num_envs \* replay_batches=4 is not a multiple of num_minibatches=3"
        ):
            algo.init(jax.random.key(0))


def test_policies_are_static_and_part_of_an_algorithms_identity() -> None:
    algo = hx.HAEPO(Drift(), policy=Pair(3))
    other = dataclasses.replace(algo, policy=Pair(3))
    assert jax.tree.structure(algo) == jax.tree.structure(other)
    assert not any(isinstance(leaf, Pair) for leaf in jax.tree.leaves(algo))


def test_many_steps_in_parts_are_the_same_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients, a last part that is smaller, and memory that holds the activations of one part."""
    policy = default_network(Box(-np.inf, np.inf, (3,)), Discrete(4), (64, 64), "tanh")
    observations = jnp.asarray(RNG.normal(size=(70, 30, 3)), jnp.float32)
    params, carry = policy.init(jax.random.key(0), observations[0, 0])

    def total(params: Any) -> jax.Array:
        outputs = each_step(lambda x: policy.apply(params, carry, x, jnp.bool_(True))[1], observations, 2)
        assert outputs.shape == (70, 30, 4)
        return jnp.sum(jnp.sin(outputs * jnp.arange(30)[:, None]))

    found, memory = [], []
    for above in (2100, 512):
        monkeypatch.setattr(networks, "RECOMPUTE_ABOVE", {"cpu": above, "default": 2100})
        gradient = jax.jit(jax.value_and_grad(total))
        compiled = gradient.lower(params).compile()
        found.append(compiled(params))
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
    chex.assert_trees_all_close(*found, rtol=2e-4, atol=2e-4)
    assert memory[1] < memory[0] / 2
    assert "scan" in str(jax.make_jaxpr(total)(params))
    loops = {
        p: "stablehlo.while" in gradient.trace(params).lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "cuda")
    }
    assert loops == {"cpu": True, "cuda": False}, "an accelerator has more memory"
    wide = jax.jit(lambda x: jnp.sum(each_step(lambda x: jnp.sin(jnp.sum(x)), x, 2)))
    text = wide.trace(jnp.zeros((70, 30, 128))).lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.while" in text, "half as many steps of twice as many values"
    # Consecutive steps of a shared axis lie on one device: there, parts would have every device compute them all.
    with hx.sharding.over_environments():
        assert "scan" not in str(jax.make_jaxpr(total)(params))
