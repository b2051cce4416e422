"""PPO up to the gradient: advantages, minibatches, the target-KL stop, the scale of rewards."""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haepo_jax as hx
from haepo_jax.algorithms.segments import Batch, RewardScale, starts_key
from haepo_jax.envs.base import TimeStep
from haepo_jax.normalization import RunningStatistics
from haepo_jax.spaces import Box, Discrete
from tests.toy_envs import Count, Drift, Pair, Start, trees_equal

SMALL: dict[str, Any] = {"num_envs": 4, "num_steps": 8, "num_minibatches": 2, "num_epochs": 3, "eval_episodes": 0}
BASE = hx.PPO(
    Drift(horizon=4), policy=Pair(3), value=Pair(0), anneal_learning_rate=False, entropy_coef=0.01,
    gae_lambda=0.95, normalize_observations=False, **SMALL,
)  # fmt: skip


@pytest.fixture(scope="module")
def state() -> Any:
    """After one update, so that environments are in mid-episode."""
    return jax.jit(lambda key: BASE.train_step(BASE.init(key))[0])(jax.random.key(0))


@pytest.fixture(scope="module")
def collected(state: Any) -> Any:
    return jax.jit(BASE.collect)(state, jax.random.key(1))


@pytest.fixture(scope="module")
def batch(state: Any, collected: Any) -> Batch:
    segment, envs = collected
    return jax.jit(BASE.batch)(state, BASE.sequences(state, segment, envs), None)


def gae(
    rewards: Any, values: Any, following: Any, terminated: Any, truncated: Any, discount: float, lam: float
) -> np.ndarray:
    """One environment, in float64: the published recursion, step by step from the end."""
    found, advantage = np.zeros(len(rewards)), 0.0
    for t in reversed(range(len(rewards))):
        after = 0.0 if terminated[t] else following[t]
        delta = rewards[t] + discount * after - values[t]
        advantage = delta + (0.0 if terminated[t] or truncated[t] else discount * lam * advantage)
        found[t] = advantage
    return found


def test_advantages_follow_from_what_was_collected(state: Any, collected: Any, batch: Batch) -> None:
    """V is linear, so every value follows from the observations: what comes after a truncation from the final one, and
    after the last step from the one that the next segment begins with."""
    segment, envs = collected
    weights = np.asarray(state.params["value"], np.float64)
    observation, rewards = (
        np.asarray(segment.steps.observation, np.float64),
        np.asarray(segment.steps.reward, np.float64),
    )
    terminated, truncated = np.asarray(segment.terminated), np.asarray(segment.truncated)
    assert terminated.any() and truncated.any() and not (terminated | truncated)[-1].all()
    values = observation @ weights
    np.testing.assert_allclose(batch.value.T, values, rtol=1e-4, atol=1e-6)
    following = np.concatenate([values[1:], (np.asarray(envs.observation) @ weights)[None]])
    # What the walk had come to when it was cut off: the reward is x + action; the clock stands at its end.
    final = np.stack([rewards - np.asarray(segment.steps.action), np.ones_like(rewards)], -1) @ weights
    following = np.where(truncated, final, following)
    shape = rewards.shape
    expected = np.stack(
        [
            gae(rewards[:, i], values[:, i], following[:, i], terminated[:, i], truncated[:, i], 0.99, 0.95)
            for i in range(shape[1])
        ],
        1,
    )
    np.testing.assert_allclose(np.asarray(batch.advantage).T, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.asarray(batch.value_target).T, expected + values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("action", [0, 1])
def test_the_reset_observation_is_never_taken_for_the_final_one(action: int) -> None:
    """V(o) = o, observations count up from 100, every step pays 1. With lambda = 0 each target is 1 + 0.9 V(next):
    nothing at a termination, and 103 at a truncation, not the reset's 100."""
    algo = hx.PPO(
        Count(), policy=Pair(2), value=Pair(0), discount=0.9, gae_lambda=0.0,
        num_envs=2, num_steps=7, num_minibatches=1, normalize_observations=False,
    )  # fmt: skip
    state = jax.jit(algo.init)(jax.random.key(0))
    favoured = jnp.zeros((1, 2)).at[0, action].set(10.0)
    state = dataclasses.replace(state, params={"policy": favoured, "value": jnp.ones(1)})

    @jax.jit
    def targets(state: Any) -> Any:
        segment, envs = algo.collect(state, jax.random.key(1))
        return algo.batch(state, algo.sequences(state, segment, envs), None).value_target

    following = [101, 0, 101, 0, 101, 0, 101] if action == 0 else [101, 102, 103, 101, 102, 103, 101]
    expected = 1 + 0.9 * np.array(following, np.float64)
    np.testing.assert_allclose(targets(state), np.stack([expected] * 2), rtol=1e-6)


def test_the_loss(state: Any, batch: Batch) -> None:
    """Against the published formulas, with the value clipped."""
    algo = BASE.replace(value_clip_eps=0.1, clip_eps=0.15, value_coef=0.7, entropy_coef=0.2)
    params = jax.tree.map(lambda x: x + 0.3, state.params)
    params["policy"] = params["policy"].at[0].add(jnp.array([0.5, 0.0, -0.5]))
    batch = BASE._as_single_steps(batch)
    observation = np.asarray(batch.observation, np.float64)
    logits = observation @ np.asarray(params["policy"], np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    taken = np.take_along_axis(log_probs, np.asarray(batch.action)[:, None], -1)[:, 0]
    ratio = np.exp(taken - np.asarray(batch.log_prob))
    a = np.asarray(batch.advantage, np.float64)
    a = (a - a.mean()) / (a.std() + 1e-8)
    objective = np.minimum(ratio * a, np.clip(ratio, 0.85, 1.15) * a).mean()
    value, old, target = (
        observation @ np.asarray(params["value"], np.float64),
        np.asarray(batch.value),
        np.asarray(batch.value_target),
    )
    clipped = old + np.clip(value - old, -0.1, 0.1)
    value_loss = np.maximum((value - target) ** 2, (clipped - target) ** 2).mean() / 2
    entropy = -(np.exp(log_probs) * log_probs).sum(-1).mean()
    loss, metrics = algo.loss(params, batch)
    np.testing.assert_allclose(metrics["clip_fraction"], np.mean(np.abs(ratio - 1) > 0.15), rtol=1e-5)
    assert 0 < metrics["clip_fraction"] < 1
    np.testing.assert_allclose(metrics["value_loss"], value_loss, rtol=1e-4)
    np.testing.assert_allclose(loss, -objective + 0.7 * value_loss - 0.2 * entropy, rtol=1e-4)
    plain = BASE.loss(params, batch)[1]["value_loss"]
    np.testing.assert_allclose(plain, ((value - target) ** 2).mean() / 2, rtol=1e-4)
    assert plain < metrics["value_loss"]


@pytest.mark.parametrize("replay_batches", [1, 2])
def test_the_kl_penalty(replay_batches: int) -> None:
    """It adds the KL from the policy before the update, not from the one that collected the data."""
    plain = BASE.replace(replay_batches=replay_batches)
    penalized = plain.replace(kl_coef=0.5)
    state = jax.jit(lambda key: plain.train_step(plain.train_step(plain.init(key))[0])[0])(jax.random.key(0))
    segment, envs = jax.jit(plain.collect)(state, jax.random.key(1))
    replay = plain.replayed(state, plain.sequences(state, segment, envs))
    batch = penalized._as_single_steps(penalized.batch(state, replay, None))
    params = {**state.params, "policy": state.params["policy"].at[0].add(jnp.array([0.5, 0.0, -0.5]))}

    def log_probs(weights: Any) -> np.ndarray:
        logits = np.asarray(batch.observation, np.float64) @ np.asarray(weights, np.float64)
        return np.asarray(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))

    before, after = log_probs(state.params["policy"]), log_probs(params["policy"])
    kl = (np.exp(before) * (before - after)).sum(-1).mean()
    assert kl > 0.01
    added = penalized.loss(params, batch)[0] - plain.loss(params, batch)[0]
    np.testing.assert_allclose(added, 0.5 * kl, rtol=1e-3)
    trained, _ = jax.jit(penalized.train_step)(state)
    assert not trees_equal(trained.params, jax.jit(plain.train_step)(state)[0].params)


class Recorded:
    """`learn` of an algorithm, and the same minibatch by minibatch, with their indices seen on the way."""

    def __init__(self, state: Any, batch: Batch) -> None:
        self.state, self.batch, self.key = state, batch, jax.random.key(5)
        self.seen: list[np.ndarray] = []
        self.program = jax.jit(lambda algo: algo.learn(state, batch, self.key))

    def learn(self, algo: Any) -> Any:
        return self.program(algo)

    def minibatch(self, indices: np.ndarray) -> Batch:
        return jax.tree.map(lambda x: x[indices], BASE._as_single_steps(self.batch))

    def minibatches(self) -> list[np.ndarray]:
        """Found by learning from a batch whose steps are numbered."""
        if not self.seen:
            seen = self.seen

            @jax.tree_util.register_dataclass
            @dataclasses.dataclass(frozen=True)
            class Spy(hx.PPO):
                def loss(self, params: Any, batch: Batch) -> Any:
                    jax.debug.callback(
                        lambda numbers: seen.append(np.asarray(numbers)), batch.value_target, ordered=True
                    )
                    return super().loss(params, batch)

            spy = Spy(**{field.name: getattr(BASE, field.name) for field in dataclasses.fields(BASE)})
            numbers = jnp.arange(self.batch.value_target.size, dtype=jnp.float32).reshape(SMALL["num_steps"], -1).T
            numbered = dataclasses.replace(self.batch, value_target=numbers)
            jax.block_until_ready(jax.jit(lambda: spy.learn(self.state, numbered, self.key))())
            jax.effects_barrier()
        # The last call is for the metrics that no gradient needs.
        return [x.astype(int) for x in self.seen[:-1]]


@pytest.fixture(scope="module")
def recorded(state: Any, batch: Batch) -> Recorded:
    return Recorded(state, batch)


def test_every_step_is_in_one_minibatch_of_each_epoch(recorded: Recorded) -> None:
    seen = recorded.minibatches()
    size = SMALL["num_envs"] * SMALL["num_steps"]
    assert [len(minibatch) for minibatch in seen] == [size // 2] * 6
    orders = [np.concatenate(seen[2 * epoch : 2 * epoch + 2]) for epoch in range(3)]
    for order in orders:
        assert sorted(order) == list(range(size))
        assert list(order) != list(range(size))
    assert len({tuple(order) for order in orders}) == 3


def test_the_rest_is_left_out_once_the_kl_passes_its_target(recorded: Recorded) -> None:
    """The parameters are those after the minibatch that saw the KL pass, and the metrics are its own from then on."""
    algo = BASE.replace(learning_rate=0.1)
    grad = jax.jit(jax.grad(algo.loss, has_aux=True))
    params, opt_state = recorded.state.params, recorded.state.opt_state
    path, kls = [params], []
    for indices in recorded.minibatches():
        gradients, metrics = grad(params, recorded.minibatch(indices))
        params, opt_state = algo.apply_gradients(params, opt_state, gradients)
        path.append(params)
        kls.append(float(metrics["kl"]))
    plain = recorded.learn(algo)
    chex.assert_trees_all_close(plain[0], path[-1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(plain[2]["kl"], np.mean(kls), rtol=1e-3)

    assert kls[0] < kls[1] and max(kls) > 0.01
    target = (kls[1] + max(kls)) / 2
    stop = next(i for i, kl in enumerate(kls) if kl > target)
    assert 1 < stop < len(kls) - 1
    stopped, _, metrics = recorded.learn(algo.replace(target_kl=target))
    chex.assert_trees_all_close(stopped, path[stop + 1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["kl"], np.mean(kls[:stop] + [kls[stop]] * (len(kls) - stop)), rtol=1e-3)


def test_a_target_that_is_never_passed_changes_nothing(recorded: Recorded) -> None:
    plain, bounded = recorded.learn(BASE), recorded.learn(BASE.replace(target_kl=1e9))
    chex.assert_trees_all_close(plain, bounded, rtol=1e-5, atol=1e-7)


def test_rewards_are_divided_by_the_deviation_of_the_discounted_return(state: Any, collected: Any) -> None:
    """Over all segments so far; that return runs on from one segment to the next, and starts anew with an episode."""
    scale = RewardScale(RunningStatistics.of(jnp.float32(0)), jnp.zeros(4))
    segment = collected[0]
    rewards, is_first = np.asarray(segment.steps.reward, np.float64), np.asarray(segment.is_first)
    assert not is_first[0].all()
    total, totals = np.zeros(4), []
    update = jax.jit(lambda scale: scale.update(segment, 0.9))
    for _ in range(2):
        scale = update(scale)
        for t in range(len(rewards)):
            total = np.where(is_first[t], 0, total) * 0.9 + rewards[t]
            totals.append(total)
        np.testing.assert_allclose(
            scale.apply(segment.steps.reward), np.clip(rewards / np.std(totals), -10, 10), rtol=1e-4
        )
        np.testing.assert_allclose(scale.discounted_return, total, rtol=1e-4)


def test_a_run_with_every_option_at_once() -> None:
    algo = hx.PPO(
        Drift(horizon=3), normalize_rewards=True, normalize_observations=True, value_clip_eps=0.2, target_kl=1e-6,
        hidden_sizes=(4,), normalize_advantages=False, clip_eps=(0.3, 0.1), entropy_coef=(0.1, 0.0), total_steps=100,
        **SMALL,
    )  # fmt: skip
    run = jax.jit(lambda key: jax.lax.scan(lambda state, _: algo.train_step(state), algo.init(key), length=3))
    state, metrics = run(jax.random.key(0))
    assert all(np.isfinite(value).all() for value in metrics.values()), metrics
    assert state.env_steps.to_int() == 3 * 32
    assert float(state.normalizer.count) == 3 * 32
    assert float(state.extra.reward_scale.statistics.count) == 3 * 32


def test_returns_are_those_of_the_episodes_that_ended_and_nothing_before_one_has() -> None:
    algo = hx.PPO(Start(horizon=10), hidden_sizes=(4,), policy=Pair(2), value=Pair(0), **SMALL)
    step = jax.jit(algo.train_step)
    state, metrics = step(jax.jit(algo.init)(jax.random.key(0)))
    assert metrics["episode_return"] == metrics["episode_length"] == metrics["episodes"] == 0
    starts = np.asarray(state.extra.envs.observation[:, 0])
    _, metrics = step(state)
    assert metrics["episodes"] == 4 and metrics["episode_length"] == 10
    np.testing.assert_allclose(metrics["episode_return"], 10 * starts.mean(), rtol=1e-5)


def test_seeds_start_differently_and_starts_have_keys_of_their_own() -> None:
    first, second = (jax.jit(BASE.init)(jax.random.key(seed)) for seed in (0, 1))
    assert not np.isin(
        np.asarray(first.extra.envs.observation[:, 0]), np.asarray(second.extra.envs.observation[:, 0])
    ).any()
    # `fold_in(key, n)` is `split(key)[n]`: starts folded into the run's key itself would share theirs with the updates.
    key = first.key
    starts = [
        jax.random.fold_in(jax.random.fold_in(starts_key(key), index), episode)
        for index in range(4)
        for episode in range(3)
    ]
    updates = [part for update in range(4) for part in jax.random.split(jax.random.fold_in(key, update))]
    assert not any(trees_equal(start, update) for start in starts for update in updates)
    expected = jax.vmap(BASE.env.reset)(jnp.stack(starts[::3]))[1]
    np.testing.assert_allclose(first.extra.envs.observation, expected, rtol=1e-6)


@dataclasses.dataclass(frozen=True)
class Chain:
    """A choice that decides the reward, a forced action, and a choice that does not matter."""

    name, horizon = "chain", 3
    observation_space = Box(0.0, 1.0, (5,))
    action_space = Discrete(2)

    def reset(self, key: jax.Array) -> tuple[Any, jax.Array]:
        state = {"time": jnp.int32(0), "chosen": jnp.int32(0)}
        return state, self.observe(state)

    def observe(self, state: Any) -> jax.Array:
        return jax.nn.one_hot(jnp.where(state["time"] == 0, 0, 2 * state["time"] - 1 + state["chosen"]), 5)

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> TimeStep:
        time = state["time"] + 1
        new = {"time": time, "chosen": jnp.where(time == 1, action, state["chosen"]).astype(jnp.int32)}
        return TimeStep(new, self.observe(new), jnp.where(time == 3, 2.0 * new["chosen"] - 1, 0.0), time >= 3, False)

    def action_mask(self, state: Any) -> jax.Array:
        return jnp.array([True, False]) | (state["time"] != 1)


@pytest.mark.parametrize("method", [hx.PPO, hx.HAEPO])
def test_values_of_forced_steps_are_learnt(method: Any) -> None:
    """With lambda = 0 the choice is credited by nothing but the value of the forced step after it."""
    algo = method(
        Chain(), total_steps=3000, num_envs=8, num_steps=30, learning_rate=3e-3, gae_lambda=0.0, discount=1.0,
        normalize_rewards=False, hidden_sizes=(16,), eval_episodes=32, log_points=1,
    )  # fmt: skip
    state, metrics = jax.jit(algo.train)(jax.random.key(0))
    assert metrics["eval_return"][-1] > 0.9
    assert algo.value_of(state, ((), ()), jnp.eye(5)[2], jnp.bool_(False)) > 0.7
