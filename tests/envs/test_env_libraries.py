"""The optional libraries, each against its own stepping; where one is missing, the line that says how to install it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haepo_jax.distributions import action_distribution
from haepo_jax.envs import check_environment, has_action_mask, list_envs, make_env, names
from haepo_jax.rollout import collect_episodes, collect_segment, environment_keys, start_environments
from haepo_jax.spaces import Box, Discrete, MultiDiscrete, map_space

OPTIONAL = [prefix for prefix in names.LIBRARIES if prefix not in ("gymnax", "brax")]
INSTALLED = {prefix: names.is_installed(prefix) for prefix in OPTIONAL}
RESET_KEY, STEP_KEY, NUM_ENVS = jax.random.key(1), jax.random.key(2), 4


def needs(prefix: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not INSTALLED[prefix], reason=f"the {prefix} extra is not installed")


@pytest.mark.parametrize("prefix", OPTIONAL)
def test_absent(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = names.LIBRARIES[prefix].package
    for module in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    task = next((task for task in names.tasks_of(prefix) if names.refusal(f"{prefix}/{task}") is None), "Any-v1")
    monkeypatch.setattr(names, "is_installed", lambda other: other != prefix)
    with pytest.raises(ImportError, match=rf"pip install 'haepo_jax\[{prefix}\]'") as raised:
        make_env(f"{prefix}/{task}")
    assert "\n" not in str(raised.value) and f"{prefix}/{task} requires" in str(raised.value)


@pytest.mark.parametrize("prefix", OPTIONAL)
def test_the_list_has_what_is_installed(prefix: str) -> None:
    assert any(name.startswith(f"{prefix}/") for name in list_envs()) == INSTALLED[prefix]


def registered(prefix: str) -> set[str]:
    if prefix == "jumanji":
        return set(pytest.importorskip("jumanji").registered_environments())
    if prefix == "pgx":
        return {*pytest.importorskip("pgx").available_envs(), "bridge_bidding"}
    return set(pytest.importorskip("xminigrid").registered_environments())


@pytest.mark.parametrize("prefix", ["jumanji", "pgx", "xminigrid"])
def test_every_registered_task_is_served_or_refused_with_a_reason(prefix: str) -> None:
    assert set(names.tasks_of(prefix)) == registered(prefix)
    refused = {name for name in names.tasks_of(prefix) if names.refusal(f"{prefix}/{name}")}
    assert {name for name in list_envs() if name.startswith(f"{prefix}/")} == {
        f"{prefix}/{name}" for name in registered(prefix) - refused
    }
    for name in refused:
        with pytest.raises(ValueError, match=f"{prefix}/{name} (is not supported|requires a ruleset)") as raised:
            make_env(f"{prefix}/{name}")
        assert "\n" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in list_envs() if name.partition("/")[0] in set(OPTIONAL) - {"playground"}]
)
def test_every_task_keeps_the_protocol_and_its_horizon(name: str) -> None:
    """Random valid actions, to the end: an episode that the horizon cuts off has a limit that it was told."""
    if not INSTALLED[name.partition("/")[0]]:
        pytest.skip("not installed")
    env = make_env(name)
    check_environment(env)
    if env.horizon > 1000:  # the largest are only traced
        return
    keys = environment_keys(jax.random.key(0), 8)
    _, returns, lengths = jax.jit(lambda: collect_episodes(env, random_act(env), (), keys, keys, record=False))()
    assert np.all(np.isfinite(returns)) and np.all(lengths >= 1) and np.all(lengths <= env.horizon)
    longest = int(np.max(lengths))
    if env.horizon < 100 and not name.startswith(("xminigrid", "craftax")):
        assert longest > env.horizon / 3, f"{longest} of {env.horizon}"


def uniform(space: Any) -> Any:
    """What a policy without opinions puts out."""

    def output(part: Any) -> Any:
        if isinstance(part, Box):
            return jnp.zeros(part.shape), jnp.zeros(part.shape)
        return jnp.zeros(part.n if isinstance(part, Discrete) else sum(part.sizes))

    return map_space(output, space)


def random_act(env: Any) -> Callable[..., Any]:
    def act(carry: Any, observation: Any, is_first: Any, mask: Any, key: jax.Array) -> Any:
        return carry, action_distribution(env.action_space, uniform(env.action_space), mask).sample(key), None

    return act


class Own(NamedTuple):
    """A library's own stepping of one environment, without any reset of ours.

    reset: key -> (state, observation); step: (key, state, action) -> (state, observation, reward, terminated,
    truncated); mask: state -> valid actions, or None.
    """

    name: str
    settings: dict[str, Any]
    steps: int
    reset: Callable[[jax.Array], Any]
    step: Callable[[jax.Array, Any, Any], Any]
    mask: Callable[[Any], Any] | None = None


def jumanji(task: str, steps: int, flat: tuple[int, ...] = (), **settings: Any) -> Own:
    inner = pytest.importorskip("jumanji").make(task, **settings)

    def reset(key: jax.Array) -> Any:
        state, step = inner.reset(key)
        return (state, step.observation), step.observation

    def step(key: jax.Array, state: Any, action: jax.Array) -> Any:
        new, step = inner.step(state[0], jnp.array(jnp.unravel_index(action, flat)) if flat else action)
        last, discount = step.last(), step.discount
        return (new, step.observation), step.observation, step.reward, last & (discount == 0), last & (discount != 0)

    def mask(state: Any) -> jax.Array:
        return state[1].action_mask.reshape(-1)

    masked = hasattr(inner.observation_spec, "action_mask")
    return Own(f"jumanji/{task}", settings, steps, reset, step, mask if masked else None)


def xminigrid(task: str, steps: int, **settings: Any) -> Own:
    inner, params = pytest.importorskip("xminigrid").make(task, **settings)

    def reset(key: jax.Array) -> Any:
        state = inner.reset(params, key)
        return state, state.observation

    def step(key: jax.Array, state: Any, action: jax.Array) -> Any:
        new = inner.step(params, state, action)
        # The library says that an episode is cut off by a discount of 1.
        return new, new.observation, new.reward, new.last() & (new.discount == 0), new.last() & (new.discount == 1)

    return Own(f"xminigrid/{task}", settings, steps, reset, step)


def craftax(task: str, steps: int, max_timesteps: int) -> Own:
    inner = pytest.importorskip("craftax.craftax_env").make_craftax_env_from_name(task, auto_reset=False)
    params = inner.default_params.replace(max_timesteps=max_timesteps)

    def reset(key: jax.Array) -> Any:
        observation, state = inner.reset(key, params)
        return state, observation

    def step(key: jax.Array, state: Any, action: jax.Array) -> Any:
        observation, new, reward, done, info = inner.step(key, state, action, params)
        at_limit = new.timestep >= max_timesteps
        dead = new.player_health <= 0
        return new, observation, reward, done & (dead | ~at_limit), done & at_limit & ~dead

    return Own(f"craftax/{task}", {"max_timesteps": max_timesteps}, steps, reset, step)


def pgx(task: str, steps: int) -> Own:
    """A game against whoever takes the first valid action, move by move; keys as `PgxEnv` deals them out."""
    inner = pytest.importorskip("pgx").make(task)

    def answered(state: Any, reward: jax.Array, key: jax.Array) -> Any:
        # At most three moves follow each other in these games; none is made once the game is over.
        for _ in range(3):
            key, _, chance_key = jax.random.split(key, 3)
            theirs = (state.current_player != 0) & ~state.terminated
            new = inner.step(state, jnp.argmax(state.legal_action_mask), chance_key)
            state = jax.tree.map(functools.partial(jnp.where, theirs), new, state)
            reward += jnp.where(theirs, new.rewards[0], 0.0)
        return state, reward

    def deal(key: jax.Array) -> Any:
        return (key, key) if inner.num_players == 1 else jax.random.split(key)

    def reset(key: jax.Array) -> Any:
        start_key, others_key = deal(key)
        state, _ = answered(inner.init(start_key), jnp.float32(0), others_key)
        return state, state.observation

    def step(key: jax.Array, state: Any, action: jax.Array) -> Any:
        own_key, others_key = deal(key)
        state = inner.step(state, action, own_key)
        state, reward = answered(state, state.rewards[0], others_key)
        return state, state.observation, reward, state.terminated, state.truncated

    settings = {} if inner.num_players == 1 else {"opponent": first_valid}
    return Own(f"pgx/{task}", settings, steps, reset, step, lambda state: state.legal_action_mask)


def first_valid(key: jax.Array, observation: jax.Array, valid: jax.Array) -> jax.Array:
    return jnp.argmax(valid)


TASKS: dict[str, Callable[[], Own]] = {
    "jumanji/Snake-v1": lambda: jumanji("Snake-v1", 40, num_rows=4, num_cols=4, time_limit=12),
    "jumanji/Tetris-v0": lambda: jumanji("Tetris-v0", 20, flat=(4, 6), num_rows=6, num_cols=6),
    "jumanji/Cleaner-v0": lambda: jumanji("Cleaner-v0", 12, time_limit=5),
    "xminigrid/MiniGrid-Empty-5x5": lambda: xminigrid("MiniGrid-Empty-5x5", 60, max_steps=25),
    "craftax/Craftax-Classic-Symbolic-v1": lambda: craftax("Craftax-Classic-Symbolic-v1", 15, max_timesteps=6),
    "pgx/tic_tac_toe": lambda: pgx("tic_tac_toe", 20),
    "pgx/leduc_holdem": lambda: pgx("leduc_holdem", 20),
    "pgx/minatar-breakout": lambda: pgx("minatar-breakout", 60),
}


def equal_trees(ours: Any, theirs: Any) -> None:
    """The same numbers, whatever containers they are in; the mask of valid actions is no part of our observations."""
    if hasattr(theirs, "action_mask"):
        theirs = theirs._asdict()
        del theirs["action_mask"]
    named = jax.tree_util.tree_leaves_with_path(theirs)
    own = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in
           jax.tree_util.tree_leaves_with_path(ours)}  # fmt: skip
    assert len(own) == len(named)
    for path, value in named:
        key = jax.tree_util.keystr(path, simple=True, separator="/")
        np.testing.assert_allclose(own[key], value, rtol=1e-6, atol=1e-6, err_msg=key)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name.startswith("craftax/") else name for name in TASKS]
)
def test_segments_are_the_librarys_own_stepping(name: str) -> None:
    """Observations, masks, rewards, both kinds of end and what follows an end, over several episodes of several environments,
    against the library's functions called one step at a time with the same keys and actions."""
    if not INSTALLED[name.partition("/")[0]]:
        pytest.skip("not installed")
    own = TASKS[name]()
    env = make_env(own.name, **own.settings)
    check_environment(env)
    assert has_action_mask(env) == (own.mask is not None)
    step_keys = environment_keys(STEP_KEY, NUM_ENVS)
    segment, _ = jax.jit(
        lambda: collect_segment(
            env,
            random_act(env),
            lambda *_: jnp.float32(7.0),
            start_environments(env, (), RESET_KEY, NUM_ENVS),
            RESET_KEY,
            step_keys,
            own.steps,
        )
    )()
    assert bool(jnp.all(segment.steps.mask))

    reset, step = jax.jit(jax.vmap(own.reset)), jax.jit(jax.vmap(own.step))
    episode = np.zeros(NUM_ENVS, int)

    def start(episodes: np.ndarray) -> Any:
        return reset(jax.vmap(jax.random.fold_in)(environment_keys(RESET_KEY, NUM_ENVS), jnp.asarray(episodes)))

    state, observation = start(episode)
    seen = {"terminated": 0, "truncated": 0}
    for t in range(own.steps):
        now = jax.tree.map(lambda x, t=t: x[t], segment)
        equal_trees(now.steps.observation, observation)
        if own.mask is not None:
            mask = jax.vmap(own.mask)(state)
            np.testing.assert_array_equal(now.steps.action_mask, mask)
            if isinstance(env.action_space, Discrete):
                assert np.all(np.take_along_axis(np.asarray(mask), np.asarray(now.steps.action)[:, None], 1))
        keys = jax.vmap(lambda key, t=t: jax.random.split(jax.random.fold_in(key, t))[1])(step_keys)
        state, observation, reward, terminated, truncated = step(keys, state, now.steps.action)
        np.testing.assert_allclose(now.steps.reward, reward, rtol=1e-6)
        np.testing.assert_array_equal(now.terminated, terminated)
        np.testing.assert_array_equal(now.truncated, truncated)
        np.testing.assert_array_equal(now.final_value, 7.0 * np.asarray(truncated))
        done = np.asarray(terminated | truncated)
        seen["terminated"] += int(np.sum(terminated))
        seen["truncated"] += int(np.sum(truncated))
        if np.any(done):
            episode += done
            fresh = start(episode)
            select = lambda new, old, done=done: jnp.where(done.reshape(-1, *[1] * (new.ndim - 1)), new, old)  # noqa: E731
            state, observation = jax.tree.map(select, fresh, (state, observation))
    assert np.all(episode >= 1), "the test saw no automatic reset"
    if own.settings.keys() & {"time_limit", "max_steps", "max_timesteps"}:
        assert seen["terminated"] + seen["truncated"] > NUM_ENVS
    if name.startswith(("xminigrid", "craftax")):
        assert seen["truncated"] > 0


def test_agents_begin_half_of_the_games_and_random_opponents_are_random() -> None:
    pytest.importorskip("pgx")
    env = make_env("pgx/tic_tac_toe")
    state, observation = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 400))
    assert np.all(state.inner.current_player == 0)
    answered = np.asarray(observation).any(axis=(1, 2))[:, 1]  # the plane of the other player's stones
    assert 150 < answered.sum() < 250
    fields = np.asarray(observation)[answered][..., 1].reshape(-1, 9).sum(0)
    assert np.all(fields > 5), "each field was taken by some opening move"


def test_a_game_pays_what_its_last_moves_pay() -> None:
    """Every tic-tac-toe return is -1, 0 or 1, an opponent's winning move included."""
    pytest.importorskip("pgx")
    env = make_env("pgx/tic_tac_toe")
    keys = environment_keys(jax.random.key(3), 256)
    _, returns, lengths = jax.jit(lambda: collect_episodes(env, random_act(env), (), keys, keys, record=False))()
    assert set(np.unique(returns).tolist()) == {-1.0, 0.0, 1.0} and np.all(lengths <= 5)


@pytest.mark.slow
def test_a_game_that_ends_before_the_agents_first_turn_pays_at_its_first_step() -> None:
    pytest.importorskip("pgx")
    env = make_env("pgx/sparrow_mahjong")
    state, _ = jax.jit(jax.vmap(env.reset))(environment_keys(jax.random.key(1), 1000))
    over = np.flatnonzero(state.inner.terminated)
    assert over.size > 0
    some = jax.tree.map(lambda x: x[over], state)
    paid = jax.jit(jax.vmap(env.step))(environment_keys(jax.random.key(2), over.size), some, jnp.zeros(over.size, int))
    np.testing.assert_array_equal(paid.reward, state.inner.rewards[over, 0])
    assert np.any(paid.reward != 0) and np.all(paid.terminated) and not np.any(paid.state.owed)


@needs("jumanji")
def test_jumanji_spaces() -> None:
    assert make_env("jumanji/Tetris-v0").action_space == Discrete(40)
    assert make_env("jumanji/Cleaner-v0").action_space == MultiDiscrete((4, 4, 4))
    snake = make_env("jumanji/Snake-v1", num_rows=5, num_cols=5, time_limit=30)
    assert snake.horizon == 30 and snake.observation_space["grid"] == Box(0.0, 1.0, (5, 5, 5))
    assert snake.observation_space["step_count"] == Discrete(30)
    assert make_env("jumanji/Snake-v1").observation_space["step_count"] == Box(0, 3999, (), np.int32)
    assert make_env("jumanji/Game2048-v1", episode_length=7).horizon == 7
    assert make_env("jumanji/Knapsack-v1").inner is make_env("jumanji/Knapsack-v1").inner


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("jumanji/Snake-v1", {"num_row": 3}, "did you mean 'num_rows'"),
        ("jumanji/Snake-v1", {"time_limit": "long"}, "time_limit must be an integer, got 'long'"),
        ("jumanji/Game2048-v1", {"episode_length": 0}, "episode_length must be at least 1, got 0"),
        (
            "pgx/connect_four",
            {"opponent": "strong"},
            "opponent must be 'random' or, from Python, a function, got 'strong'",
        ),
        ("pgx/connect_four", {"size": 3}, "no setting 'size'"),
        ("xminigrid/MiniGrid-Empty-5x5", {"max_stepz": 3}, "did you mean 'max_steps'"),
        ("xminigrid/MiniGrid-Empty-5x5", {"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ("craftax/Craftax-Classic-Symbolic-v1", {"max_timesteps": -1}, "max_timesteps must be at least 1, got -1"),
        ("craftax/Craftax-Classic-Symbolic-v1", {"timesteps": 9}, "did you mean 'max_timesteps'"),
    ],
)
def test_wrong_settings_in_one_line(name: str, settings: dict[str, Any], message: str) -> None:
    if not INSTALLED[name.partition("/")[0]]:
        pytest.skip("not installed")
    with pytest.raises((ValueError, TypeError), match=message) as raised:
        make_env(name, **settings)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
@needs("craftax")
def test_craftax_params_are_leaves() -> None:
    env = make_env("craftax/Craftax-Classic-Symbolic-v1", max_timesteps=50)
    days = jnp.array([50, 1000])
    batch = jax.vmap(lambda day: env.replace(params=env.params.replace(day_length=day)))(days)
    states, _ = jax.jit(jax.vmap(lambda env: env.reset(jax.random.key(0))))(batch)
    step = jax.jit(jax.vmap(lambda env, state: env.step(jax.random.key(0), state, jnp.int32(0))))
    for _ in range(3):
        states = step(batch, states).state
    assert float(states.light_level[0]) != float(states.light_level[1])
