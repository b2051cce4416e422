"""EpisodicHAEPO, GRPO and DPO up to the gradient: what they collect, what their losses are of, what the reference is."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats

import haepo_jax as hx
from haepo_jax.algorithms.trajectory import EpisodeBatch, drop_invalid, on_valid_steps
from haepo_jax.losses import AUTO
from haepo_jax.rollout import Trajectory
from tests.toy_envs import Drift, Lock, Start, equations

GROUPS, MEMBERS, HORIZON = 2, 4, 4
SMALL: dict[str, Any] = {
    "num_envs": GROUPS * MEMBERS, "group_size": MEMBERS, "num_minibatches": 1, "num_epochs": 1, "hidden_sizes": (4,),
    "eval_episodes": 0,
}  # fmt: skip
BASE = hx.EpisodicHAEPO(Drift(horizon=HORIZON), **SMALL)


def shaken(params: Any, seed: int, scale: float = 0.3) -> Any:
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(
        structure, [x + scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )


@pytest.fixture(scope="module")
def state() -> Any:
    fresh = jax.jit(BASE.init)(jax.random.key(0))
    return dataclasses.replace(fresh, params=shaken(fresh.params, 1))


@pytest.fixture(scope="module")
def collected(state: Any) -> Any:
    return jax.jit(BASE.collect)(state, jax.random.key(4))


@pytest.fixture(scope="module")
def batch(state: Any, collected: Any) -> EpisodeBatch:
    steps = collected[0]
    reference = jax.jit(BASE.sequence_distribution)(shaken(state.params, 2), steps.observation, steps)
    return EpisodeBatch(steps, steps.observation, reference)


@pytest.fixture(scope="module")
def params(state: Any) -> Any:
    """Of the policy being optimised, some way from the one that collected the batch and from the reference."""
    return shaken(state.params, 3)


# The episodes.


def test_a_group_shares_its_start_and_no_two_groups_do(collected: Any) -> None:
    steps, returns, lengths, invalid = collected
    assert steps.mask.shape == (HORIZON, GROUPS, MEMBERS)
    start = np.asarray(steps.observation[0])
    np.testing.assert_array_equal(start, np.broadcast_to(start[:, :1], start.shape))
    assert len(np.unique(start[:, 0, 0])) == GROUPS
    assert len(np.unique(np.asarray(steps.action), axis=-1)[0]) > 1, "the members of a group do the same"
    np.testing.assert_allclose(np.asarray(steps.reward).sum(0).ravel(), returns, rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(steps.mask).sum(0).ravel(), lengths)
    assert not invalid.any()


@pytest.fixture(scope="module")
def sound(state: Any) -> Trajectory:
    """Episodes that do not share their starts."""
    steps: Trajectory = jax.jit(dataclasses.replace(BASE, shared_start=False).collect)(state, jax.random.key(4))[0]
    return steps


def test_independent_starts_and_one_group_of_the_whole_batch(state: Any, sound: Trajectory) -> None:
    assert sound.mask.shape == (HORIZON, GROUPS, MEMBERS)
    assert len(np.unique(sound.observation[0, ..., 0])) == GROUPS * MEMBERS
    whole = dataclasses.replace(BASE, group_size=GROUPS * MEMBERS)
    steps, *_ = jax.jit(whole.collect)(state, jax.random.key(4))
    assert steps.mask.shape == (HORIZON, 1, GROUPS * MEMBERS)
    assert len(np.unique(steps.observation[0, ..., 0])) == 1


def test_the_record_holds_the_behaviour_policys_log_probabilities(state: Any, collected: Any) -> None:
    steps = collected[0]
    found = jax.jit(BASE.sequence_distribution)(state.params, steps.observation, steps).log_prob(steps.action)
    mask = np.asarray(steps.mask)
    np.testing.assert_allclose(np.asarray(found)[mask], np.asarray(steps.extras)[mask], rtol=1e-5)


@pytest.mark.parametrize("broken", ["reward", "observation"])
def test_an_episode_that_is_not_finite_leaves_its_group(state: Any, sound: Trajectory, broken: str) -> None:
    """Those that start above 0 break at their second step: a reward counts at once, an observation when acted on."""
    algo = dataclasses.replace(BASE, env=Drift(horizon=HORIZON, broken=broken), shared_start=False)
    steps, _, lengths, invalid = jax.jit(algo.collect)(state, jax.random.key(4))
    above = np.asarray(sound.observation[0, ..., 0]).ravel() > 0
    expected = above & (np.asarray(sound.mask).sum(0).ravel() >= (2 if broken == "reward" else 3))
    assert expected.any() and (above & ~expected).any() and not expected.all()
    np.testing.assert_array_equal(invalid, expected)
    assert np.all(np.asarray(lengths)[expected] >= 2)
    returns = jax.jit(lambda state: algo.evaluate(state, episodes=32)["return"])(state)
    assert np.isnan(returns).any() and np.isfinite(returns).any(), "evaluation does not count it as any other"
    for leaf, before in zip(jax.tree.leaves(steps), jax.tree.leaves(sound), strict=True):
        flat, flat_before = (np.asarray(x).reshape(HORIZON, GROUPS * MEMBERS, -1) for x in (leaf, before))
        assert not flat[:, expected].any()
        np.testing.assert_array_equal(flat[:, ~expected], flat_before[:, ~expected])


def test_a_broken_step_behind_the_end_breaks_nothing(collected: Any, state: Any) -> None:
    algo = dataclasses.replace(BASE, env=Drift(horizon=HORIZON, nan_after_end=True))
    found = jax.jit(algo.collect)(state, jax.random.key(4))
    chex.assert_trees_all_close(found, collected, rtol=1e-5, atol=1e-6)


def test_updates_go_on_where_episodes_break() -> None:
    """They are counted, the mean return is that of the others, and parameters stay finite."""
    algo = hx.EpisodicHAEPO(Drift(horizon=2, broken="reward"), shared_start=False, on_nan="skip", **SMALL)
    state = jax.jit(algo.init)(jax.random.key(0))
    step = jax.jit(algo.train_step)
    broken = 0
    for _ in range(4):
        before, (state, metrics) = state, step(state)
        assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["episode_return"])
        assert metrics["invalid_episodes"] + metrics["episodes"] == GROUPS * MEMBERS
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
        broken += int(metrics["invalid_episodes"])
    assert broken > 0
    assert int(state.status.invalid_episodes) == broken
    assert int(state.status.skipped) == 0

    # An update that is not finite by itself is dropped, and the run goes on from other episodes.
    sick = dataclasses.replace(before, params=jax.tree.map(lambda x: x * jnp.nan, before.params))
    after, metrics = step(sick)
    assert np.isnan(metrics["loss"])
    assert int(after.status.skipped) == 1
    assert int(after.update) == int(sick.update) + 1
    chex.assert_trees_all_equal(after.opt_state, sick.opt_state)


def test_drop_invalid_of_a_dictionary_observation() -> None:
    zeros = jnp.zeros((3, 4))
    vector = jnp.zeros((3, 4, 2)).at[1, 2, 0].set(jnp.inf)
    observation = {"image": jnp.ones((3, 4, 2, 2), jnp.uint8), "vector": vector}
    steps = Trajectory(observation, zeros, zeros.at[0, 0].set(jnp.nan), zeros == 0, None, ())
    kept, invalid = jax.jit(drop_invalid)(steps)
    assert invalid.tolist() == [True, False, True, False]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept))
    assert np.asarray(kept.mask).any(0).tolist() == [False, True, False, True]
    assert np.asarray(kept.observation["image"])[:, 1].all()


@pytest.mark.parametrize(("horizon", "sizes"), [(1, {1}), (2, {1, 2}), (9, {2, 3, 9}), (24, {3, 8, 24})])
def test_work_is_done_on_the_shortest_prefix_that_holds_every_live_step(horizon: int, sizes: set[int]) -> None:
    def size(longest: jax.Array) -> jax.Array:
        mask = (jnp.arange(horizon)[:, None] < jnp.array([longest, 0]))[:, None]
        steps = Trajectory(mask, mask, mask.astype(jnp.float32), mask, None, ())
        return on_valid_steps(lambda steps: jnp.int32(steps.mask.shape[0]), steps, steps.mask)

    found = [int(jax.jit(size)(longest)) for longest in range(horizon + 1)]
    assert found == [min(s for s in sizes if s >= longest) for longest in range(horizon + 1)]
    # Under vmap the longest of all runs decides, and the branch is taken, not selected.
    together = jax.vmap(size)
    assert together(jnp.array([0, 1])).tolist() == [min(sizes)] * 2
    assert together(jnp.array([1, horizon])).tolist() == [horizon] * 2
    if horizon > 1:
        branches = [e for e in equations(jax.make_jaxpr(together)(jnp.arange(2))) if e.primitive.name == "cond"]
        assert [len(e.params["branches"]) for e in branches] == [len(sizes)]


# The losses: what they are of. Their formulas have their own tests; here the arrays that reach them are checked.


def oracle(algo: Any, batch: EpisodeBatch, params: Any) -> dict[str, float]:
    """HAEPO's trajectory loss in float64 NumPy, from the policy's logits and the recorded episodes."""
    steps, mask = batch.steps, np.asarray(batch.steps.mask)
    log_probs, reference = (
        np.asarray(x.log_probs, np.float64)
        for x in (BASE.sequence_distribution(params, batch.observation, steps), batch.reference)
    )
    taken = np.asarray(steps.action)[..., None]
    behaviour = np.where(mask, np.asarray(steps.extras, np.float64), 0)
    own, anchor = (np.where(mask, np.take_along_axis(x, taken, -1)[..., 0], 0) for x in (log_probs, reference))

    def score(x: np.ndarray) -> np.ndarray:
        total = x.sum(0)
        scores = {"likelihood": total, "mean_likelihood": total / mask.sum(0), "log_ratio": (x - behaviour).sum(0)}
        return scores[algo.score]

    returns = np.where(mask, np.asarray(steps.reward, np.float64), 0).sum(0)
    centred = returns - returns.mean(-1, keepdims=True)
    standardized = centred / (returns.std(-1, keepdims=True) + 1e-8)
    ranks = (scipy.stats.rankdata(returns, axis=-1) - 1) / (MEMBERS - 1) - 0.5
    normalized = {"none": returns, "center": centred, "standardize": standardized, "rank": ranks}[algo.normalize]
    s = score(own)
    tau = np.maximum(1, np.ptp(s, axis=-1, keepdims=True) / 2) if algo.temperature == AUTO else algo.temperature
    w, w_ref = scipy.special.softmax(s / tau, -1), scipy.special.softmax(score(anchor) / tau, -1)
    entropy = (-(w * np.log(w)).sum(-1) / np.log(MEMBERS)).mean()
    kl = (w_ref * np.log(w_ref / w)).sum(-1).mean()
    if algo.entropy == "policy":
        entropy = -(np.exp(log_probs) * log_probs).sum(-1)[mask].mean()
    if algo.kl == "policy":
        kl = (np.exp(reference) * (reference - log_probs)).sum(-1)[mask].mean()
    objective = (w * normalized).sum(-1).mean()
    loss = -objective - algo.entropy_coef * entropy + algo.kl_coef * kl
    return {"objective": objective, "entropy": entropy, "kl": kl, "loss": loss}


SCORES, NORMALIZATIONS = ("likelihood", "mean_likelihood", "log_ratio"), ("none", "center", "standardize", "rank")


@pytest.mark.parametrize(
    ("score", "normalize"),
    [
        (score, normalize) if (i == 1) != (j in (0, 3)) else pytest.param(score, normalize, marks=pytest.mark.slow)
        for i, score in enumerate(SCORES)
        for j, normalize in enumerate(NORMALIZATIONS)
    ],
)
def test_the_trajectory_loss_of_haepo(batch: EpisodeBatch, params: Any, score: str, normalize: str) -> None:
    # Every entropy, KL and temperature meets every score and every normalisation, though not every one of each other.
    number = SCORES.index(score) + NORMALIZATIONS.index(normalize)
    algo = BASE.replace(
        credit="trajectory", score=score, normalize=normalize, temperature=(1.0, 3.0, "auto")[number % 3],
        entropy=("policy", "weights")[number % 2], kl=("policy", "weights")[number // 2 % 2],
        entropy_coef=0.3, kl_coef=0.7,
    )  # fmt: skip
    gradients, metrics = jax.grad(algo.loss, has_aux=True)(params, batch)
    for name, value in oracle(algo, batch, params).items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    norm = optax.tree.norm(gradients)
    assert np.isfinite(norm) and norm > 0


@pytest.mark.parametrize("kl", ["policy", "weights"])
@pytest.mark.parametrize("entropy", ["policy", "weights"])
def test_the_prefix_loss_of_haepo(batch: EpisodeBatch, params: Any, entropy: str, kl: str) -> None:
    steps, mask = batch.steps, batch.steps.mask
    current = BASE.sequence_distribution(params, batch.observation, steps)
    for temperature in (0.5, "auto"):
        algo = BASE.replace(
            entropy=entropy, kl=kl, temperature=temperature, history_decay=0.8, entropy_coef=0.3, kl_coef=0.7
        )
        gradients, metrics = jax.grad(algo.loss, has_aux=True)(params, batch)
        expected = hx.haepo_prefix_loss(
            current.log_prob(steps.action), steps.extras, steps.reward, mask, history_decay=0.8,
            temperature=temperature, entropy_coef=0.3, kl_coef=0.7, entropy=entropy, kl=kl,
            policy_entropy=current.entropy(),
            policy_kl=batch.reference.kl_to(current), reference_log_probs=batch.reference.log_prob(steps.action),
        )[1]  # fmt: skip
        assert metrics.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-7, err_msg=name)
        assert np.isfinite(optax.tree.norm(gradients)) and optax.tree.norm(gradients) > 0


def test_the_loss_of_grpo(batch: EpisodeBatch, params: Any) -> None:
    algo = hx.GRPO(BASE.env, kl_coef=0.5, entropy_coef=0.25, clip_eps=0.1, **SMALL)
    steps, mask = batch.steps, np.asarray(batch.steps.mask)
    current = BASE.sequence_distribution(params, batch.observation, steps)
    own, old, ref = (
        np.asarray(x, np.float64)
        for x in (current.log_prob(steps.action), steps.extras, batch.reference.log_prob(steps.action))
    )
    returns = np.where(mask, steps.reward, 0).astype(np.float64).sum(0)
    advantage = (returns - returns.mean(-1, keepdims=True)) / (returns.std(-1, keepdims=True) + 1e-8)
    ratio = np.exp(own - old)
    surrogate = np.minimum(ratio * advantage, np.clip(ratio, 0.9, 1.1) * advantage)
    k3 = np.exp(ref - own) - 1 - (ref - own)
    over = lambda x: np.mean(np.where(mask, x, 0).sum(0) / mask.sum(0))  # noqa: E731
    entropy = np.asarray(current.entropy())[mask].mean()
    metrics = algo.loss(params, batch)[1]
    np.testing.assert_allclose(metrics["kl"], over(k3), rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], -over(surrogate) + 0.5 * over(k3) - 0.25 * entropy, rtol=1e-4)


def test_the_loss_of_dpo(batch: EpisodeBatch, params: Any) -> None:
    algo = hx.DPO(BASE.env, beta=0.5, entropy_coef=0.25, **SMALL)
    steps, mask = batch.steps, np.asarray(batch.steps.mask)
    current = BASE.sequence_distribution(params, batch.observation, steps)
    ratio = (
        np.where(mask, current.log_prob(steps.action) - batch.reference.log_prob(steps.action), 0)
        .astype(np.float64)
        .sum(0)
    )
    returns = np.where(mask, steps.reward, 0).sum(0)
    groups = []
    for group in range(GROUPS):
        r, m = returns[group], ratio[group]
        pairs = [(i, j) for i in range(MEMBERS) for j in range(MEMBERS) if r[i] > r[j]]
        groups.append(np.mean([-np.log(scipy.special.expit(0.5 * (m[i] - m[j]))) for i, j in pairs]))
    metrics = algo.loss(params, batch)[1]
    entropy = np.asarray(current.entropy())[mask].mean()
    np.testing.assert_allclose(metrics["loss"], np.mean(groups) - 0.25 * entropy, rtol=1e-4)

    # Where every return is the same there is no pair, and nothing to learn.
    tied = dataclasses.replace(batch, steps=dataclasses.replace(steps, reward=jnp.zeros_like(steps.reward)))
    gradients, metrics = jax.grad(algo.loss, has_aux=True)(params, tied)
    assert metrics["loss"] == metrics["pairs"] == 0
    assert optax.tree.norm(gradients) == 0


@pytest.mark.parametrize(
    "method",
    [hx.EpisodicHAEPO, functools.partial(hx.EpisodicHAEPO, credit="trajectory", score="likelihood"), hx.GRPO, hx.DPO],
)
def test_garbage_in_dead_steps_changes_neither_value_nor_gradient(
    batch: EpisodeBatch, params: Any, method: Any
) -> None:
    algo = method(BASE.env, **{**SMALL, "entropy_coef": 0.3})
    steps = batch.steps
    dead = ~steps.mask
    assert dead.any()
    dirty = dataclasses.replace(
        steps,
        observation=jnp.where(dead[..., None], 1e3, steps.observation),
        action=jnp.where(dead, 2, steps.action),
        reward=jnp.where(dead, jnp.nan, steps.reward),
        extras=jnp.where(dead, jnp.nan, steps.extras),
    )
    logits = jnp.where(dead[..., None], -50.0 * jnp.arange(3), batch.reference.log_probs)  # type: ignore[union-attr]
    reference = dataclasses.replace(batch.reference, log_probs=logits)
    grad = jax.grad(lambda params, batch: algo.scheduled(jnp.float32(0)).loss(params, batch), has_aux=True)
    clean, spoilt = grad(params, batch), grad(params, EpisodeBatch(dirty, dirty.observation, reference))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-8), spoilt, clean)


# The update.


@pytest.mark.parametrize("method", [hx.EpisodicHAEPO, hx.GRPO])
def test_the_reference_is_the_last_policy_or_the_first(state: Any, collected: Any, method: Any) -> None:
    """The KL of the very first minibatch is 0 against the policy that collected it, and not against another one."""
    steps = collected[0]
    for reference in ("previous", "initial"):
        algo = method(BASE.env, reference=reference, **SMALL)
        fresh = jax.eval_shape(algo.init, jax.random.key(0))
        assert (fresh.reference is None) == (reference == "previous")
        first = shaken(state.params, 5)
        own = dataclasses.replace(state, reference=None if reference == "previous" else first)
        learn = jax.jit(lambda state, algo=algo: algo.scheduled(jnp.float32(0)).learn(state, steps, jax.random.key(0)))
        kl = float(learn(own)[2]["kl"])
        if reference == "previous":
            assert abs(kl) < 1e-6
            continue
        now, then = (algo.sequence_distribution(p, steps.observation, steps) for p in (state.params, first))
        if method is hx.EpisodicHAEPO:
            expected = np.asarray(then.kl_to(now))[np.asarray(steps.mask)].mean()
        else:
            d = np.asarray(then.log_prob(steps.action) - now.log_prob(steps.action))
            mask = np.asarray(steps.mask)
            expected = np.mean((np.where(mask, np.exp(d) - 1 - d, 0)).sum(0) / mask.sum(0))
        np.testing.assert_allclose(kl, expected, rtol=1e-4)


def test_minibatches_are_whole_groups_each_once_an_epoch(state: Any) -> None:
    seen: list[Any] = []

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Spy(hx.EpisodicHAEPO):
        def loss(self, params: Any, batch: EpisodeBatch) -> Any:
            jax.debug.callback(
                lambda starts: seen.append(np.asarray(starts)), batch.steps.observation[0, ..., 0], ordered=True
            )
            return super().loss(params, batch)

    algo = Spy(BASE.env, **{**SMALL, "num_envs": 6 * 2, "group_size": 2, "num_minibatches": 3, "num_epochs": 4})
    steps, *_ = jax.jit(algo.collect)(state, jax.random.key(4))
    jax.jit(lambda: algo.scheduled(jnp.float32(0)).learn(state, steps, jax.random.key(0)))()
    jax.effects_barrier()
    assert len(seen) == 13, "the last call is for the metrics that no gradient needs"
    assert all(minibatch.shape == (2, 2) for minibatch in seen)
    orders = []
    for epoch in range(4):
        groups = np.concatenate(seen[3 * epoch : 3 * epoch + 3])
        np.testing.assert_array_equal(groups[:, 0], groups[:, 1])
        assert sorted(groups[:, 0]) == sorted(np.asarray(steps.observation[0, :, 0, 0]))
        orders.append(tuple(groups[:, 0]))
    assert len(set(orders)) > 1, "every epoch has the same order"


def test_an_optimiser_step_is_adams_on_clipped_gradients(state: Any) -> None:
    algo = BASE.replace(learning_rate=0.1, max_grad_norm=0.5)
    gradients = jax.tree.map(lambda x: x + 1, state.params)
    expected = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1, eps=1e-5))
    moments = expected.init(state.params)
    params, opt_state = state.params, algo.optimizer.init(state.params)
    wanted = state.params
    for _ in range(2):
        params, opt_state = algo.apply_gradients(params, opt_state, gradients)
        updates, moments = expected.update(gradients, moments)
        wanted = optax.apply_updates(wanted, updates)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), params, wanted)


# Dictionary observations and action masks.


@pytest.mark.parametrize(
    "method", [hx.HAEPO, *(pytest.param(x, marks=pytest.mark.slow) for x in (hx.EpisodicHAEPO, hx.PPO))]
)
def test_dictionary_observations_and_action_masks(method: Any) -> None:
    """Two of four actions are valid, others at every step: none of the others is ever taken, and learning goes on."""
    env = Lock()
    own = {} if method is hx.PPO else {"group_size": 4}
    own |= {} if method is hx.EpisodicHAEPO else {"num_steps": 4}
    algo = method(
        env,
        num_envs=8,
        num_epochs=2,
        num_minibatches=2,
        hidden_sizes=(4,),
        total_steps=1000,
        normalize_observations=True,
        **own,
    )

    @jax.jit
    def run(key: jax.Array) -> Any:
        start = algo.init(key)
        state, metrics = jax.lax.scan(lambda state, _: algo.train_step(state), start, length=3)
        collected = algo.collect(state, jax.random.key(1))[0]
        steps = collected if method is hx.EpisodicHAEPO else collected.steps
        greedy = algo.evaluate(state, episodes=32, greedy=True)
        return metrics, steps, greedy, algo.normalized(state.normalizer, steps.observation)

    metrics, steps, greedy, seen = run(jax.random.key(0))
    assert np.isfinite(metrics["loss"]).all() and np.isfinite(metrics["grad_norm"]).all()
    assert (metrics["grad_norm"] > 0).all()
    if method is hx.EpisodicHAEPO:
        assert not metrics["invalid_episodes"].any(), "an invalid action was taken"
    live = np.asarray(steps.mask)
    assert live.any()
    assert np.take_along_axis(np.asarray(steps.action_mask), np.asarray(steps.action)[..., None], -1)[live].all()
    assert (np.asarray(steps.action_mask)[live].sum(-1) == 2).all()
    assert np.isfinite(np.asarray(steps.reward)).all() and np.isfinite(greedy["return"]).all()
    assert steps.observation["image"].dtype == jnp.uint8
    # What is Discrete stays an integer for its one-hot; the rest is standardised.
    np.testing.assert_array_equal(seen["code"], steps.observation["code"])
    assert seen["image"].dtype == seen["nested"][1].dtype == jnp.float32
    assert abs(float(seen["nested"][1].max())) < 5


def test_evaluation_has_the_same_starts_for_all_seeds_and_is_the_same_every_time() -> None:
    algo = hx.EpisodicHAEPO(Start(horizon=3), **SMALL)

    @jax.jit
    def evaluate(key: jax.Array, eval_key: jax.Array) -> Any:
        state = algo.init(key)
        evaluations = {}, {"greedy": True}, {"key": eval_key}
        return tuple(algo.evaluate(state, episodes=6, **settings) for settings in evaluations)

    first, greedy, other = evaluate(jax.random.key(0), jax.random.key(7))
    second, _, same = evaluate(jax.random.key(1), jax.random.key(7))
    np.testing.assert_array_equal(first["return"], second["return"])
    np.testing.assert_array_equal(first["return"], greedy["return"])
    assert len(np.unique(first["return"])) == 6
    assert first["length"].tolist() == [3] * 6
    assert not np.isin(np.asarray(other["return"]), np.asarray(first["return"])).any()
    np.testing.assert_array_equal(other["return"], same["return"])


def test_greedy_evaluation_takes_the_mode() -> None:
    env = hx.make_env("haepo/bandit", num_arms=3, num_pulls=4, noise_std=0.0)
    algo = hx.EpisodicHAEPO(env, **SMALL)

    @jax.jit
    def returns(key: jax.Array) -> Any:
        state = algo.init(key)
        # Nearly indifferent, with a preference for arm 1 at every step.
        params = jax.tree.map(jnp.zeros_like, state.params)
        last = max(params["params"]["MLP_0"], key=lambda name: name)
        params["params"]["MLP_0"][last]["bias"] = jnp.array([0.0, 0.1, 0.0])
        state = dataclasses.replace(state, params=params)
        return algo.evaluate(state, episodes=16, greedy=True)["return"], algo.evaluate(state, episodes=16)["return"]

    greedy, sampled = returns(jax.random.key(0))
    np.testing.assert_allclose(greedy, 4 * float(env.params.means[1]), rtol=1e-5)
    assert len(np.unique(np.asarray(sampled).round(3))) > 1
