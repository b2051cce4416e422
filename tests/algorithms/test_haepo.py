"""HAEPO up to the gradient: what it keeps of earlier policies, advantages, groups, and that it learns."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haepo_jax as hx
from haepo_jax import losses
from haepo_jax.algorithms.segments import Batch, RewardScale
from haepo_jax.normalization import RunningStatistics
from tests.toy_envs import GRU, Count, Drift, Pair, trees_equal

ENVS, STEPS, BATCHES = 4, 6, 3
SMALL: dict[str, Any] = {
    "num_envs": ENVS, "num_steps": STEPS, "replay_batches": BATCHES, "group_size": 2, "num_minibatches": 2,
    "num_epochs": 2, "eval_episodes": 0, "anneal_learning_rate": False, "learning_rate": 0.05,
}  # fmt: skip
BASE = hx.HAEPO(Drift(horizon=4), policy=Pair(3), value=Pair(0), normalize_observations=False, **SMALL)


@pytest.fixture(scope="module")
def states() -> list[Any]:
    """Before each update, and after the last one: the replay buffer has been overwritten once."""
    step = jax.jit(lambda state: BASE.train_step(state)[0])
    found = [jax.jit(BASE.init)(jax.random.key(0))]
    for _ in range(5):
        found.append(step(found[-1]))
    return found


def slot(replay: Any, update: int) -> Any:
    """The part of the replay buffer that holds the segments of an update."""
    begin = update % BATCHES * ENVS
    return jax.tree.map(lambda x: np.asarray(x)[begin : begin + ENVS], replay)


@pytest.fixture(scope="module")
def batch(states: list[Any]) -> Batch:
    """What the update after the last would learn from, but for its own segments: those of three policies."""
    return jax.jit(functools.partial(BASE.batch, reward_scale=None))(states[5], states[5].extra.replay)


# What is kept.


def test_the_replay_buffer_holds_the_last_segments_with_the_log_probabilities_of_their_behaviour_policies(
    states: list[Any],
) -> None:
    for update in range(5):
        before, after = states[update], states[update + 1]
        kept = slot(after.extra.replay, update)
        # The slot begins where the environments stood before the update, and ends where they stand after it.
        np.testing.assert_allclose(kept.segment.steps.observation[:, 0], before.extra.envs.observation)
        np.testing.assert_array_equal(kept.segment.is_first[:, 0], before.extra.envs.is_first)
        np.testing.assert_allclose(kept.next_observation, after.extra.envs.observation)
        np.testing.assert_array_equal(kept.next_is_first, after.extra.envs.is_first)
        for other in range(max(update - BATCHES + 1, 0), update + 1):
            old = slot(after.extra.replay, other)
            assert trees_equal(old, slot(states[other + 1].extra.replay, other)), "a segment changes while it is kept"
            logits = np.float64(old.segment.steps.observation) @ np.float64(states[other].params["policy"])
            log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            taken = np.take_along_axis(log_probs, old.segment.steps.action[..., None], -1)[..., 0]
            np.testing.assert_allclose(old.log_prob, taken, rtol=1e-4, atol=1e-5)
        for empty in range(update + 1, BATCHES):
            assert not any(np.any(leaf) for leaf in jax.tree.leaves(slot(after.extra.replay, empty)))
    assert not trees_equal(states[0].params, states[1].params)


@functools.cache
def spied_program() -> tuple[Any, list[np.ndarray]]:
    """`learn`, which records the segments of every minibatch by the numbers in their value targets."""
    seen: list[np.ndarray] = []

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Spy(hx.HAEPO):
        def loss(self, params: Any, batch: Batch) -> Any:
            jax.debug.callback(lambda x: seen.append(np.asarray(x)), batch.value_target[:, 0], ordered=True)
            return super().loss(params, batch)

    spy = Spy(**{field.name: getattr(BASE, field.name) for field in dataclasses.fields(BASE)})

    def learn(state: Any, batch: Batch, batches: jax.Array) -> Any:
        return spy.learn(dataclasses.replace(state, update=batches - 1), batch, jax.random.key(5))

    return jax.jit(learn), seen


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_every_epoch_is_of_all_segments_in_the_replay_buffer(states: list[Any], batch: Batch, batches: int) -> None:
    """Empty slots are not read, whatever is in them: until the buffer is full, some segments are repeated."""
    learn, seen = spied_program()
    seen.clear()
    filled, size = batches * ENVS, BATCHES * ENVS
    numbers = jnp.broadcast_to(jnp.arange(size, dtype=jnp.float32)[:, None], (size, STEPS))
    numbered = dataclasses.replace(batch, value_target=numbers)
    clean = learn(states[5], numbered, jnp.int32(batches))
    jax.effects_barrier()
    # The fifth call is for the metrics that no gradient needs.
    assert [x.shape for x in seen] == [(size // 2,)] * 5
    epochs = [np.concatenate(seen[i : i + 2]).astype(int) for i in (0, 2)]
    for epoch in epochs:
        counts = np.bincount(epoch, minlength=size)
        assert counts[filled:].sum() == 0 and counts[:filled].min() >= size // filled
        assert counts[:filled].max() <= -(-size // filled)
    assert epochs[0].tolist() != epochs[1].tolist(), "every epoch has the same order"

    def spoil(x: jax.Array) -> jax.Array:
        return x.at[filled:].set(jnp.nan) if jnp.issubdtype(x.dtype, jnp.floating) else x

    assert trees_equal(learn(states[5], jax.tree.map(spoil, numbered), jnp.int32(batches)), clean)


# Advantages.


@pytest.mark.parametrize("scaled", [False, True])
def test_advantages_are_of_the_current_values(states: list[Any], batch: Batch, scaled: bool) -> None:
    """V is linear, so every value follows from the observations. The observation that an episode was cut off at is not
    kept: its value is the one of then, changed by as much as that of the step before. Rewards are kept as they came and
    scaled as of today."""
    replay, weights = states[5].extra.replay, np.float64(states[5].params["value"])
    deviation = 1.0
    if scaled:
        statistics = dataclasses.replace(
            RunningStatistics.of(jnp.float32(0)), count=jnp.float32(8), squares=jnp.float32(32)
        )
        deviation = 2.0
        scale = RewardScale(statistics, jnp.zeros(ENVS))
        batch = jax.jit(lambda scale: BASE.batch(states[5], replay, scale))(scale)
    truncations = 0
    for update in (2, 3, 4):
        old = slot(replay, update)
        rows = slice(update % BATCHES * ENVS, update % BATCHES * ENVS + ENVS)
        observation, raw = np.float64(old.segment.steps.observation), np.float64(old.segment.steps.reward)
        rewards, terminated, truncated = raw / deviation, old.segment.terminated, old.segment.truncated
        values = observation @ weights
        following = np.concatenate([values[:, 1:], (np.float64(old.next_observation) @ weights)[:, None]], 1)
        # The walk when it was cut off: the reward is x + action; the clock stands at its end.
        final = np.stack([raw - old.segment.steps.action, np.ones_like(raw)], -1)
        weights_then = np.float64(states[update].params["value"])
        cut_off_at = final @ weights_then + observation @ (weights - weights_then)
        following = np.where(truncated, cut_off_at, following)
        expected = np.zeros((ENVS, STEPS))
        for i in range(ENVS):
            advantage = 0.0
            for t in reversed(range(STEPS)):
                delta = rewards[i, t] + 0.99 * (0.0 if terminated[i, t] else following[i, t]) - values[i, t]
                advantage = delta + (0.0 if terminated[i, t] or truncated[i, t] else 0.99 * 0.95 * advantage)
                expected[i, t] = advantage
        np.testing.assert_allclose(batch.advantage[rows], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(batch.value_target[rows], expected + values, rtol=1e-4, atol=1e-5)
        truncations += int(truncated.sum())
    assert truncations > 0


def test_advantages_where_episodes_are_truncated_are_nearly_those_of_the_exact_value() -> None:
    """On Pendulum, where the final observation follows from the one before it and the action. The value of then gives a
    correlation of 0.92."""
    algo = hx.HAEPO("Pendulum-v1", total_steps=80_000)
    step = jax.jit(algo.train_step)
    state = jax.jit(algo.init)(jax.random.key(0))
    for _ in range(22):
        state, _ = step(state)
    replay = state.extra.replay
    steps, truncated = replay.segment.steps, np.asarray(replay.segment.truncated)
    assert truncated.sum() == 8
    cosine, sine, speed = np.moveaxis(np.float64(steps.observation), -1, 0)
    speed = np.clip(speed + (15.0 * sine + 3.0 * np.clip(np.float64(steps.action)[..., 0], -2, 2)) * 0.05, -8, 8)
    angle = np.arctan2(sine, cosine) + 0.05 * speed
    final = np.stack([np.cos(angle), np.sin(angle), speed], -1).astype(np.float32)

    @jax.jit
    def advantages(state: Any, final: jax.Array) -> tuple[jax.Array, jax.Array]:
        carry = jax.tree.map(lambda x: x[0], replay.carry)
        values = jax.vmap(jax.vmap(lambda x: algo.value_of(state, carry, x, jnp.bool_(False))))
        segment = dataclasses.replace(replay.segment, final_value=jnp.where(truncated, values(final), 0))
        # With the values of today in the place of those of then, nothing has changed since.
        today = dataclasses.replace(replay, segment=segment, values=values(steps.observation))
        exact = algo.batch(state, today, state.extra.reward_scale)
        return exact.advantage, algo.batch(state, replay, state.extra.reward_scale).advantage

    exact, found = (np.asarray(x).ravel() for x in advantages(state, final))
    assert np.corrcoef(exact, found)[0, 1] > 0.999


def test_the_loss_is_of_groups_of_consecutive_segments(states: list[Any], batch: Batch) -> None:
    """Time first, then groups, then members; the KL is to the policy before the update."""
    algo = BASE.replace(entropy_coef=0.2, kl_coef=0.4, value_coef=0.7, temperature=0.5, history_decay=0.8)
    params = jax.tree.map(lambda x: 1.5 * x + 0.1, states[5].params)

    def log_softmax(observation: np.ndarray, policy: Any) -> np.ndarray:
        logits = np.float64(observation) @ np.float64(policy)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    observation = np.asarray(batch.observation)
    now, before = (log_softmax(observation, p["policy"]) for p in (params, states[5].params))
    taken = np.take_along_axis(now, np.asarray(batch.action)[..., None], -1)[..., 0]
    grouped = np.zeros((4, STEPS, BATCHES * ENVS // 2, 2), np.float32)
    arrays = taken, np.asarray(batch.log_prob), np.asarray(batch.advantage), np.asarray(batch.is_first)
    for index, array in enumerate(arrays):
        for group in range(BATCHES * ENVS // 2):
            for member in range(2):
                grouped[index, :, group, member] = array[2 * group + member]
    entropy, kl = -(np.exp(now) * now).sum(-1).mean(), (np.exp(before) * (before - now)).sum(-1).mean()
    assert kl > 1e-3
    policy_loss, expected = losses.haepo_advantage_loss(
        *grouped, history_decay=0.8, temperature=0.5, entropy_coef=0.2, kl_coef=0.4,
        policy_entropy=np.float32(entropy), policy_kl=np.float32(kl),
    )  # fmt: skip
    value = np.float64(observation) @ np.float64(params["value"])
    value_loss = ((value - np.asarray(batch.value_target)) ** 2).mean() / 2
    loss, metrics = jax.jit(algo.loss)(params, batch)
    np.testing.assert_allclose(loss, policy_loss + 0.7 * value_loss, rtol=1e-4)
    for name in ("objective", "entropy", "kl", "ess", "max_weight", "alignment"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-3, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(metrics["value_loss"], value_loss, rtol=1e-4)


def test_small_advantages_are_not_amplified(states: list[Any], batch: Batch) -> None:
    """In units of scaled rewards only, and with PPO alike."""
    params = jax.tree.map(lambda x: 1.5 * x + 0.1, states[5].params)
    least = 10 * np.asarray(batch.advantage).std()
    for algo in (BASE, hx.PPO(BASE.env, policy=BASE.policy, value=BASE.value)):
        scaled, raw = (algo.replace(normalize_rewards=scaled) for scaled in (True, False))
        plain, small, unscaled = (
            jax.jit(one.loss)(params, batch)[1]["objective"]
            for one in (scaled, scaled.replace(min_advantage_std=least), raw.replace(min_advantage_std=least))
        )
        assert abs(plain) > 1e-3
        np.testing.assert_allclose(small, plain / 10, rtol=1e-4)
        np.testing.assert_array_equal(unscaled, plain)


# Recurrent networks.


def test_segments_of_a_recurrent_policy_start_from_the_carry_that_they_were_collected_with() -> None:
    """Steps in sequence give what was recorded one by one, also in segments that begin within an episode."""
    settings = {**SMALL, "num_steps": 5, "normalize_observations": False}
    algo = hx.HAEPO(Drift(horizon=3), policy=GRU(3), value=GRU(0), **settings)

    @jax.jit
    def run(key: jax.Array) -> Any:
        state, metrics = jax.lax.scan(lambda state, _: algo.train_step(state), algo.init(key), length=2)
        segment, envs = algo.collect(state, jax.random.key(1))
        sequences = algo.sequences(state, segment, envs)
        inputs = sequences.segment.steps.observation, sequences.segment.is_first, None, sequences.carry
        distribution, values = algo.outputs(state.params, *inputs)
        step = jax.vmap(lambda carry, observation, is_first: algo.value_of(state, carry, observation, is_first))
        end = step(envs.carry, envs.observation, envs.is_first)
        return (
            metrics["loss"], sequences.carry, sequences.segment.is_first, state.extra.envs.carry,
            (*(x.T for x in segment.steps.extras), end),
            (distribution.log_prob(sequences.segment.steps.action), values,
             algo._next_value(state, inputs[0], sequences)),
        )  # fmt: skip

    loss, carry, is_first, envs_carry, recorded, found = run(jax.random.key(0))
    assert np.isfinite(loss).all() and trees_equal(carry, envs_carry)
    assert np.any(np.asarray(carry[0])[~np.asarray(is_first[:, 0])] != 0), "no segment begins within an episode"
    assert is_first.sum() > 4
    for name, x, y in zip(("log-probability", "value", "value of the end"), recorded, found, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6, err_msg=name)


def test_minibatches_of_a_recurrent_policy_need_not_divide_its_environments() -> None:
    """They consist of whole segments in any case."""
    sizes = SMALL | {"num_envs": 4, "num_minibatches": 3, "replay_batches": 3, "group_size": 4}
    algo = hx.HAEPO(Count(), policy=GRU(2), value=GRU(0), **sizes)
    state = jax.eval_shape(algo.init, jax.eval_shape(lambda: jax.random.key(0)))
    assert state.extra.replay.segment.is_first.shape == (12, STEPS)


# Learning.


def test_cartpole_is_learnt_from_few_steps() -> None:
    algo = hx.HAEPO("CartPole-v1", total_steps=12_000, log_points=1, eval_episodes=0)

    @jax.jit
    def run(key: jax.Array) -> jax.Array:
        state, _ = algo.train(key)
        return algo.evaluate(state, episodes=32, greedy=True)["return"]

    assert float(run(jax.random.key(0)).mean()) > 400
