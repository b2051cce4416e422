"""Whole runs: the compiled update, seeds and hyperparameters side by side, schedules, the history."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haepo_jax as hx
from haepo_jax.counting import StepCount
from haepo_jax.envs import Box, Discrete, TimeStep
from tests.toy_envs import Drift, equations, trees_equal

BANDIT = hx.make_env("haepo/bandit", num_arms=4, num_pulls=2, noise_std=0.3)
SMALL: dict[str, Any] = {
    "num_envs": 16,
    "num_epochs": 2,
    "num_minibatches": 2,
    "hidden_sizes": (8,),
    "eval_episodes": 0,
}
GROUPS: dict[str, Any] = {**SMALL, "group_size": 4, "total_steps": 50 * 32, "learning_rate": 0.03}
SEGMENTS: dict[str, Any] = {**GROUPS, "num_envs": 8, "num_steps": 4, "replay_batches": 2}
ALGORITHMS: dict[str, Any] = {
    "haepo": hx.HAEPO(BANDIT, **SEGMENTS),
    "haepo_episodic": hx.EpisodicHAEPO(BANDIT, **GROUPS),
    "ppo": hx.PPO(BANDIT, num_steps=4, total_steps=60 * 64, learning_rate=0.03, **SMALL),
    "grpo": hx.GRPO(BANDIT, reference="initial", **GROUPS),
    "dpo": hx.DPO(BANDIT, reference_interval=2, **GROUPS),
}
STEPS_PER_UPDATE = {name: 64 if name == "ppo" else 32 for name in ALGORITHMS}


class Run:
    """A run to its end, update by update, and what it left on the way."""

    def __init__(self, name: str) -> None:
        self.name, self.algo = name, ALGORITHMS[name]
        # The algorithm is an argument, so that other numbers in it use the same program.
        chex.clear_trace_counter()  # it does not tell the algorithms apart
        self.step = jax.jit(chex.assert_max_traces(lambda algo, state: algo.train_step(state), n=1))
        self.init = jax.jit(self.algo.init)
        state = self.init(jax.random.key(0))
        self.states, self.metrics = [state], []
        while state.env_steps.to_int() < self.algo.total_steps:
            state, metrics = self.step(self.algo, state)
            self.states.append(state)
            self.metrics.append(metrics)


@pytest.fixture(scope="module", params=list(ALGORITHMS))
def run(request: pytest.FixtureRequest) -> Run:
    return Run(request.param)


def test_solves_the_bandit(run: Run) -> None:
    best = 2 * float(BANDIT.params.means.max())
    returns = [float(metrics["episode_return"]) for metrics in run.metrics]
    assert returns[0] < 0.6 * best
    assert np.mean(returns[-5:]) > 0.9 * best


def test_the_metrics_have_one_fixed_schema(run: Run) -> None:
    promised = jax.eval_shape(run.algo.train_step, run.states[0])[1]
    for metrics in run.metrics:
        assert metrics.keys() == promised.keys()
        assert all(value.shape == () and value.dtype == jnp.float32 for value in metrics.values())
        assert all(np.isfinite(value) for value in metrics.values())
    required = {
        "loss",
        "objective",
        "entropy",
        "kl",
        "grad_norm",
        "learning_rate",
        "episode_return",
        "episode_length",
        "episodes",
    }
    required |= {
        "haepo": {"value_loss", "ess", "max_weight", "alignment"},
        "haepo_episodic": {"ess", "max_weight", "alignment"},
        "ppo": {"value_loss", "clip_fraction"},
        "dpo": {"pairs", "accuracy"},
    }.get(run.name, set())
    assert required - ({"kl"} if run.name == "dpo" else set()) <= promised.keys()


def test_the_state_keeps_its_structure(run: Run) -> None:
    """Types included, weak ones too: else the second update would compile again."""
    describe = lambda state: [(x.shape, x.dtype, getattr(x, "weak_type", False)) for x in jax.tree.leaves(state)]  # noqa: E731
    assert all(describe(state) == describe(run.states[0]) for state in run.states[1:3])


def test_an_update_compiles_once(run: Run) -> None:
    """For all states, keys and values of the numeric hyperparameters: `Run.step` raises at a second trace."""
    assert len(run.metrics) > 40
    numbers = [field.name for field in dataclasses.fields(run.algo) if field.metadata.get("kind") is float]
    smaller = {name: jax.tree.map(lambda x: 0.9 * x, getattr(run.algo, name)) for name in numbers}
    assert len(jax.tree.leaves(smaller)) >= 4
    run.step(run.algo.replace(**smaller), dataclasses.replace(run.states[5], key=jax.random.key(9)))
    with pytest.raises(AssertionError, match="max_traces"):
        run.step(run.algo.replace(num_epochs=1), run.states[5])


def test_the_same_seed_gives_identical_parameters_and_another_seed_others(run: Run) -> None:
    state, other = run.init(jax.random.key(0)), run.init(jax.random.key(1))
    assert not trees_equal(state.params, other.params)
    for number in range(3):
        state, metrics = run.step(run.algo, state)
        assert trees_equal(state, run.states[number + 1])
        assert trees_equal(metrics, run.metrics[number])
    third, _ = run.step(run.algo, dataclasses.replace(run.states[2], key=jax.random.key(1)))
    assert not trees_equal(third.params, state.params)


def test_steps_and_updates_are_counted(run: Run) -> None:
    per_update = STEPS_PER_UPDATE[run.name]
    for number, state in enumerate(run.states):
        assert int(state.update) == number
        assert state.env_steps.to_int() == number * per_update
        assert trees_equal(state.key, run.states[0].key)
    assert run.algo.total_steps <= run.states[-1].env_steps.to_int() < run.algo.total_steps + per_update


def test_a_learning_rate_that_is_one_number_falls_linearly_with_the_share_of_steps_done(run: Run) -> None:
    found = [float(metrics["learning_rate"]) for metrics in run.metrics]
    done = np.arange(len(found)) * STEPS_PER_UPDATE[run.name] / run.algo.total_steps
    np.testing.assert_allclose(found, 0.03 * (1 - done), rtol=1e-4)


def test_the_reference_moves_when_it_should(run: Run) -> None:
    references = [state.reference for state in run.states[:7]]
    if run.name in ("haepo", "haepo_episodic", "ppo"):
        assert references == [None] * 7
    elif run.name == "grpo":
        assert all(trees_equal(reference, run.states[0].params) for reference in references)
        assert float(run.metrics[-1]["kl"]) > 0.01
    else:
        for number, reference in enumerate(references):
            assert trees_equal(reference, run.states[number - number % 2].params)
            assert not trees_equal(reference, run.states[number + 1].params)


def test_an_update_that_is_not_finite_stops_the_run(run: Run) -> None:
    sick = dataclasses.replace(run.states[4], params=jax.tree.map(lambda x: x + jnp.nan, run.states[4].params))
    after, metrics = run.step(run.algo, sick)
    assert np.isnan(metrics["loss"])
    assert int(after.status.diverged_at) == 4
    assert int(after.status.cause) > 0
    kept = dataclasses.replace(after, status=sick.status)
    if getattr(sick.extra, "replay", None) is not None:  # written in place, and never read again
        kept = dataclasses.replace(kept, extra=dataclasses.replace(kept.extra, replay=sick.extra.replay))
    assert trees_equal(kept, sick)
    assert trees_equal(run.step(run.algo, after)[0], after)


@pytest.mark.parametrize("broken", ["reward", "observation", "reset", "huge reward", "huge observation"])
@pytest.mark.parametrize("name", ["haepo", "ppo", "ppo_gru", "ppo_transformer"])
def test_what_is_not_finite_of_an_environment_is_not_learned_from(name: str, broken: str) -> None:
    env = Drift(horizon=3, broken=broken)
    algo: Any = hx.HAEPO(env, **SEGMENTS) if name == "haepo" else hx.PPO(env, num_steps=4, **SMALL)
    algo = algo.replace(network="gru") if name == "ppo_gru" else algo
    # Its cache holds the last step of a segment, in some environments the first one of an episode.
    algo = algo.replace(network="transformer", num_heads=2) if name == "ppo_transformer" else algo
    state, metrics = jax.jit(lambda key: jax.lax.scan(lambda s, _: algo.train_step(s), algo.init(key), length=3))(
        jax.random.key(0)
    )
    assert not state.status.diverged and np.isfinite(metrics["loss"]).all()
    assert 0 < metrics["invalid_episodes"].sum() == state.status.invalid_episodes
    assert (metrics["episodes"] > 0).all()
    statistics = state.normalizer, getattr(state.extra, "reward_scale", None)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(statistics))


# Seeds and hyperparameters side by side.

PENDULUM = hx.make_env("Pendulum-v1", max_steps_in_episode=2)


@pytest.mark.parametrize(
    ("name", "decay"),
    [
        ("haepo", "history_decay"),
        pytest.param("haepo_episodic", "history_decay", marks=pytest.mark.slow),
        pytest.param("ppo", "discount", marks=pytest.mark.slow),
    ],
)
def test_vmapped_runs_are_the_runs_alone(name: str, decay: str) -> None:
    """Seeds, hyperparameters and an environment's parameters, for the first three updates."""

    def three(learning_rate: Any, entropy_coef: Any, value: Any, gravity: Any, key: Any) -> Any:
        numbers = {"learning_rate": learning_rate, "entropy_coef": entropy_coef, decay: value}
        env = PENDULUM.replace(params=PENDULUM.params.replace(g=gravity))
        algo = ALGORITHMS[name].replace(env=env, total_steps=10_000, **numbers)
        return jax.lax.scan(lambda state, _: algo.train_step(state), algo.init(key), length=3)

    runs = [  # one difference at a time from the first
        (0.01, 0.0, 0.9, 10.0, 0), (0.01, 0.0, 0.9, 10.0, 1), (0.02, 0.0, 0.9, 10.0, 0),
        (0.01, 0.5, 0.9, 10.0, 0), (0.01, 0.0, 0.3, 10.0, 0), (0.01, 0.0, 0.9, 5.0, 0),
    ]  # fmt: skip
    columns = [jnp.asarray(column, jnp.float32) for column in list(zip(*runs, strict=True))[:4]]
    keys = jax.vmap(jax.random.key)(jnp.array([run[4] for run in runs]))
    together, metrics = jax.jit(jax.vmap(three))(*columns, keys)
    alone = jax.jit(three)
    # In its first minibatch every score is 0 but for rounding, so the rank correlation with them is that of noise.
    metrics.pop("alignment", None)
    for number, run in enumerate(runs):
        state, own_metrics = alone(*[jnp.float32(value) for value in run[:4]], jax.random.key(run[4]))
        found = jax.tree.map(lambda x: x[number], (together.params, together.normalizer, metrics))  # noqa: B023
        expected = state.params, state.normalizer, {name: own_metrics[name] for name in metrics}
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)
    weights = np.stack(
        [np.concatenate([np.ravel(x[i]) for x in jax.tree.leaves(together.params)]) for i in range(len(runs))]
    )
    for number in range(1, len(runs)):
        assert np.abs(weights[number] - weights[0]).max() > 1e-4, f"run {number} is no different from run 0"


@pytest.mark.parametrize("name", ["haepo", "haepo_episodic", "ppo"])
def test_control_flow_stays_real_under_vmap(name: str) -> None:
    """As many branches and loops as without vmap, every predicate a scalar."""
    algo = ALGORITHMS[name].replace(target_kl=0.1) if name == "ppo" else ALGORITHMS[name]
    states = jax.eval_shape(jax.vmap(algo.init), jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2)))
    single = jax.eval_shape(algo.init, jax.eval_shape(lambda: jax.random.key(0)))
    counts = []
    for function, state in ((algo.train_step, single), (jax.vmap(algo.train_step), states)):
        found = equations(jax.make_jaxpr(function)(state))
        branches = [e for e in found if e.primitive.name == "cond"]
        loops = [e for e in found if e.primitive.name == "while"]
        assert all(e.invars[0].aval.shape == () for e in branches)
        assert all(e.params["cond_jaxpr"].out_avals[0].shape == () for e in loops)
        counts.append((len(branches), len(loops)))
    assert counts[0] == counts[1]
    assert counts[0][0] >= (1 if name == "haepo" else 2)


def test_an_algorithm_is_a_pytree_for_vmap_and_scan() -> None:
    """One program for several settings, given as a batch of algorithms; and an algorithm as the carry of a scan."""
    algo = hx.HAEPO(BANDIT, entropy_coef=(0.1, 0.0), **SEGMENTS)
    batch = jax.tree.map(lambda x: jnp.stack([jnp.asarray(x), 2 * jnp.asarray(x)]), algo)
    rates = jax.jit(jax.vmap(lambda algo: algo.scheduled(jnp.float32(0.5))))(batch)
    np.testing.assert_allclose(rates.learning_rate, [0.015, 0.03], rtol=1e-6)
    np.testing.assert_allclose(rates.entropy_coef, [0.05, 0.1], rtol=1e-6)
    start = jax.tree.map(jnp.asarray, algo)
    end, _ = jax.lax.scan(lambda algo, _: (algo.replace(learning_rate=algo.learning_rate / 2), None), start, length=3)
    np.testing.assert_allclose(end.learning_rate, 0.03 / 8, rtol=1e-6)
    assert dataclasses.replace(end, learning_rate=0.5).learning_rate == 0.5
    states = jax.eval_shape(lambda batch: jax.vmap(lambda algo: algo.init(jax.random.key(0)))(batch), batch)
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(states.params))


# The whole run in one program.


def test_train_leaves_a_history_of_a_fixed_number_of_rows() -> None:
    """Fifty updates of 32 steps for 70 evenly spaced rows, so some repeat; against the updates one by one."""
    algo = ALGORITHMS["haepo"].replace(log_points=70, eval_episodes=4)
    state, history = jax.jit(algo.train)(jax.random.key(0))
    points = [-(-1600 * (row + 1) // 70) for row in range(70)]
    updates = [-(-point // 32) for point in points]
    assert history["update"].tolist() == updates
    assert updates[:7] == [1, 2, 3, 3, 4, 5, 5]
    assert history["env_steps"].to_int().tolist() == [32 * update for update in updates]
    assert state.env_steps.to_int() == 1600

    run = Run("haepo")
    assert set(history) == {*run.metrics[0], "env_steps", "update", "eval_return", "eval_return_greedy", "eval_length"}
    assert all(value.shape == (70,) for name, value in history.items() if name != "env_steps")
    for row in range(4):
        for name in ("loss", "episode_return", "learning_rate", "grad_norm"):
            expected = run.metrics[updates[row] - 1][name]
            np.testing.assert_allclose(history[name][row], expected, rtol=1e-3, atol=1e-5, err_msg=name)
    assert history["eval_length"].tolist() == [2.0] * 70
    # An evaluation belongs to the state of its own row, and greedy is not sampled.
    evaluation = jax.jit(lambda state: [algo.evaluate(state, episodes=4, greedy=greedy) for greedy in (False, True)])
    for row, updated in ((0, run.states[1]), (-1, state)):
        sampled, greedy = evaluation(updated)
        np.testing.assert_allclose(history["eval_return"][row], sampled["return"].mean(), rtol=1e-3)
        np.testing.assert_allclose(history["eval_return_greedy"][row], greedy["return"].mean(), rtol=1e-3)
    assert float(history["eval_return"][0]) != pytest.approx(float(history["eval_return_greedy"][0]))


def test_train_vmaps_over_hyperparameters_and_each_run_meets_its_steps() -> None:
    """Episodes have random lengths, so runs finish after different updates; one that has finished stays as it is."""
    algo = hx.DPO(
        Drift(horizon=2), total_steps=60, log_points=2, **{**SMALL, "num_envs": 8, "group_size": 4, "num_epochs": 1}
    )
    keys = jax.random.split(jax.random.key(2), 3)
    rates = jnp.array([1e-3, 1e-2])
    train = jax.vmap(jax.vmap(lambda rate, key: algo.replace(learning_rate=rate).train(key), (None, 0)), (0, None))
    states, history = jax.jit(train)(rates, keys)
    steps = states.env_steps.to_int()
    assert steps.shape == (2, 3)
    assert np.all((steps >= 60) & (steps < 60 + 8 * 2))
    assert history["loss"].shape == (2, 3, 2)
    assert not any(name.startswith("eval") for name in history)
    rows = history["env_steps"].to_int()
    assert np.all((rows[..., 0] >= 30) & (rows[..., 0] < 30 + 8 * 2))
    np.testing.assert_array_equal(rows[..., -1], steps)
    assert len(np.unique(states.update)) > 1, "all runs take the same number of updates"
    # A run alone: its own number of updates, in each of which only valid steps count.
    own = algo.replace(learning_rate=rates[0])
    init, step = jax.jit(lambda algo, key: algo.init(key)), jax.jit(lambda algo, state: algo.train_step(state))
    for run in range(3):
        state = init(own, keys[run])
        while state.env_steps.to_int() < 60:
            before = state.env_steps.to_int()
            state, metrics = step(own, state)
            np.testing.assert_allclose(
                state.env_steps.to_int() - before, float(metrics["episode_length"]) * 8, rtol=1e-5
            )
        assert state.env_steps.to_int() == steps[0, run]
        assert int(state.update) == int(states.update[0, run])
        np.testing.assert_allclose(metrics["loss"], history["loss"][0, run, -1], rtol=1e-3, atol=1e-5)


def test_several_values_without_vmap_are_one_line() -> None:
    algo = hx.PPO(BANDIT, num_steps=2, total_steps=8, **SMALL).replace(learning_rate=jnp.array([1e-3, 1e-4]))
    with pytest.raises(
        ValueError, match=r"learning_rate has the shape \(2,\), not \(\): use jax.vmap for several values"
    ):
        algo.train(jax.random.key(0))


def test_the_state_of_several_seeds_without_vmap_is_one_line() -> None:
    algo = hx.PPO(BANDIT, num_steps=2, total_steps=8, **SMALL)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    states = jax.eval_shape(jax.vmap(algo.init), keys)
    for function in (algo.train_step, functools.partial(algo.evaluate, episodes=2)):
        with pytest.raises(ValueError, match=r"the state has an axis of seeds, \(1,\): use jax.vmap"):
            jax.eval_shape(function, states)
        jax.eval_shape(jax.vmap(function), states)


@dataclasses.dataclass(eq=False)
class Blind:
    """A bandit with two arms, which shows nothing."""

    name, horizon = "toy/blind", 1
    observation_space, action_space = Box(0.0, 1.0, (0,)), Discrete(2)

    def reset(self, key: jax.Array) -> tuple[Any, jax.Array]:
        return jnp.int32(0), jnp.zeros(0)

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> TimeStep:
        return TimeStep(state, jnp.zeros(0), action, True, False)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_observations_may_be_empty(name: str) -> None:
    algo = ALGORITHMS[name].replace(env=hx.make_env(Blind()))
    jax.eval_shape(algo.train, jax.eval_shape(lambda: jax.random.key(0)))


def test_a_key_of_the_old_kind_is_the_same_key() -> None:
    algo = hx.PPO(BANDIT, num_steps=2, total_steps=8, **SMALL)
    assert trees_equal(*(jax.jit(algo.init)(key) for key in (jax.random.PRNGKey(3), jax.random.key(3))))


def test_advance_past_what_an_int32_holds() -> None:
    """A run of 2^40 steps, taken up half-way: schedules and counters go on; and a run that is done stays as it is."""
    algo = hx.PPO(BANDIT, num_steps=2, total_steps=2**40, learning_rate=0.01, **SMALL)
    state = dataclasses.replace(jax.jit(algo.init)(jax.random.key(0)), env_steps=StepCount.of(2**39))
    advance = jax.jit(lambda state, until: algo.advance(state, until))
    after, metrics = advance(state, StepCount.of(2**39 + 40))
    assert after.env_steps.to_int() == 2**39 + 64
    np.testing.assert_allclose(metrics["learning_rate"], 0.005, rtol=1e-5)
    same, metrics = advance(state, StepCount.of(2**39))
    assert trees_equal(same, state)
    # Another program, so rounding may differ.
    by_number, _ = jax.jit(lambda state: algo.advance(state, np.int64(2**39 + 40)))(state)  # type: ignore[arg-type]
    assert by_number.env_steps.to_int() == after.env_steps.to_int()
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), by_number.params, after.params)
    assert all(value == 0 for value in metrics.values()), "no update was made"
    shapes = jax.eval_shape(algo.replace(log_points=3).train, jax.random.key(0))
    assert shapes[1]["loss"].shape == (3,)


# Custom algorithms.


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (lambda new, metrics: (new, {**metrics, "returns": jnp.zeros(3)}), r"'returns' has the shape \(3,\)"),
        (
            lambda new, metrics: (new, {**metrics, "env_steps": jnp.float32(0)}),
            "'env_steps' has the name of one that every run has",
        ),
        (
            lambda new, metrics: (new, {**metrics, "row": jnp.float32(0)}),
            "'row' has the name of one that every run has",
        ),
        (lambda new, metrics: (new, {"return": metrics["loss"]}), "must include 'loss'; there are only return"),
        (lambda new, metrics: (dataclasses.replace(new, update=jnp.float32(1)), metrics), "float32"),
        (lambda new, metrics: (dataclasses.replace(new, params=None), metrics), "tree"),
    ],
)
def test_an_update_that_changes_the_structure_of_the_state_or_has_other_metrics_is_refused(
    update: Any, message: str
) -> None:
    class Wrong(hx.PPO):
        def update(self, state: Any) -> Any:
            return update(*super().update(state))

    jax.tree_util.register_dataclass(Wrong)
    algo = Wrong(BANDIT, num_steps=4, **SMALL)
    with pytest.raises((AssertionError, ValueError), match=message):
        jax.eval_shape(algo.train_step, jax.eval_shape(algo.init, jax.random.key(0)))


@pytest.mark.parametrize("base", [hx.PPO, hx.GRPO])
@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"ratios": jnp.ones((2, 3))}, r"the metric 'ratios' has the shape \(2, 3\): it must be a scalar"),
        ({"grad_norm": jnp.ones(())}, "the metric 'grad_norm' has the name of one that every run has: rename it"),
    ],
)
def test_a_metric_of_a_loss_that_cannot_be_reported_is_refused_by_name(base: Any, own: Any, message: str) -> None:
    class Wrong(base):  # type: ignore[misc]
        def loss(self, params: Any, batch: Any) -> Any:
            loss, metrics = super().loss(params, batch)
            return loss, metrics | own

    jax.tree_util.register_dataclass(Wrong)
    algo = Wrong(BANDIT, **SMALL)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(algo.train_step, jax.eval_shape(algo.init, jax.random.key(0)))


def test_an_update_may_count_steps_and_report_its_loss_with_python_numbers() -> None:
    class Counted(hx.PPO):
        def update(self, state: Any) -> Any:
            return dataclasses.replace(state, update=state.update + 1, env_steps=state.env_steps + 100), {"loss": 0.0}

    jax.tree_util.register_dataclass(Counted)
    algo = Counted(BANDIT, **{**SMALL, "total_steps": 300, "log_points": 3, "eval_episodes": 0})
    state, metrics = jax.jit(algo.train)(jax.random.key(0))
    assert state.env_steps.to_int() == 300 and metrics["loss"].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", ["CartPole-v1", "haepo/bandit", "brax/inverted_pendulum"])
def test_an_algorithm_may_be_built_where_it_is_jitted(name: str) -> None:
    """As in PureJaxRL's `make_train`."""

    def run(rate: jax.Array, key: jax.Array) -> Any:
        options: dict[str, Any] = {"num_envs": 4, "num_steps": 8, "num_minibatches": 1, "hidden_sizes": (4,)}
        return hx.PPO(name, learning_rate=rate, total_steps=64, log_points=2, eval_episodes=0, **options).train(key)[1]

    metrics = jax.eval_shape(jax.jit(jax.vmap(run)), jnp.zeros(3), jax.random.split(jax.random.key(0), 3))
    assert metrics["loss"].shape == (3, 2)
