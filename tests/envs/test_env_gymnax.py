"""Every gymnax task under the protocol, against gymnax's own steps."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haepo_jax.envs import Box, Discrete, check_environment, list_envs, make_env
from haepo_jax.networks import Encoder

pytest.importorskip("gymnax")

MODERN = "FrozenLake-misc" in list_envs()
TASKS = [name for name in list_envs() if "/" not in name]
# Where only the time limit ends an episode.
ENDLESS = [
    "Pendulum-v1",
    "Freeway-MinAtar",
    "DiscountingChain-bsuite",
    "BernoulliBandit-misc",
    "GaussianBandit-misc",
    "Swimmer-misc",
]


def random_action(env, key):
    space = env.action_space
    if isinstance(space, Discrete):
        return jax.random.randint(key, (), 0, space.n)
    return space.from_unit(jax.random.uniform(key, space.shape, minval=-1.0, maxval=1.0))


@functools.partial(jax.jit, static_argnames="steps")
def run(env, key, steps):
    """A random rollout in a while_loop, whose carry must keep its types: (length, terminated, truncated, return)."""
    key_reset, key_steps = jax.random.split(key)
    state, _ = env.reset(key_reset)

    def body(carry):
        state, t, done, total, *flags = carry
        key_action, key_step = jax.random.split(jax.random.fold_in(key_steps, t))
        step = env.step(key_step, state, random_action(env, key_action))
        return step.state, t + 1, step.terminated | step.truncated, total + step.reward, step.terminated, step.truncated

    start = (state, jnp.int32(0), jnp.bool_(False), jnp.float32(0), jnp.bool_(False), jnp.bool_(False))
    _, t, _, total, terminated, truncated = jax.lax.while_loop(lambda c: ~c[2] & (c[1] < steps), body, start)
    return t, terminated, truncated, total


@pytest.mark.parametrize("name", TASKS)
def test_protocol(name: str):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_environment(make_env(name))


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if "MinAtar" in n else n for n in TASKS])
def test_episodes(name: str):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = make_env(name, max_steps_in_episode=12)
        keys = jax.random.split(jax.random.key(0), 4)
        length, terminated, truncated, total = jax.vmap(run, (None, 0, None))(env, keys, 20)
    assert env.horizon <= 12 and np.all(length <= env.horizon)
    assert np.all(terminated ^ truncated) and np.all(np.isfinite(total))
    if name in ENDLESS:
        assert np.all(truncated) and np.all(length == 12)
    if env.horizon < 12:
        assert np.all(terminated) and np.max(length) == env.horizon


def test_declared_horizons_and_spaces():
    assert make_env("CartPole-v1").horizon == 500
    assert make_env("gymnax/Pendulum-v1").action_space == Box(-2.0, 2.0, (1,))
    assert make_env("FourRooms-misc").observation_space.dtype == np.int32
    assert make_env("Catch-bsuite").observation_space == Box(0.0, 1.0, (10, 5), np.float32)
    assert make_env("CartPole-v1").observation_space.high[1] == np.inf
    if MODERN:
        assert make_env("FrozenLake-misc").observation_space == Discrete(16)


@pytest.mark.parametrize(
    ("name", "settings", "longest"),
    [
        ("Catch-bsuite", {}, 9),
        ("Catch-bsuite", {"rows": 6, "columns": 4}, 5),
        ("DeepSea-bsuite", {"size": 5}, 5),
        ("MemoryChain-bsuite", {}, 6),
        ("MemoryChain-bsuite", {"memory_length": 3}, 4),
        ("UmbrellaChain-bsuite", {"chain_length": 4}, 4),
        ("SimpleBandit-bsuite", {}, 1),
    ],
)
def test_horizon_is_the_longest_episode(name: str, settings: dict, longest: int):
    env = make_env(name, **settings)
    length, terminated, _, _ = jax.vmap(run, (None, 0, None))(env, jax.random.split(jax.random.key(1), 8), 50)
    assert env.horizon == longest == np.max(length) and np.all(terminated)


def test_time_limit_truncates_and_a_fall_terminates():
    keys = jax.random.split(jax.random.key(0), 8)
    length, terminated, truncated, _ = jax.vmap(run, (None, 0, None))(make_env("Pendulum-v1"), keys, 300)
    assert np.all(length == 200) and np.all(truncated) and not np.any(terminated)
    length, terminated, truncated, total = jax.vmap(run, (None, 0, None))(make_env("CartPole-v1"), keys, 500)
    assert np.all(length < 200) and np.all(terminated) and not np.any(truncated)
    np.testing.assert_array_equal(total, length)


@pytest.mark.parametrize(
    "name", ["CartPole-v1", "Pendulum-v1", "FourRooms-misc", "Catch-bsuite", "DiscountingChain-bsuite"]
)
def test_same_trajectory_as_gymnax(name: str):
    from gymnax.registration import make

    env = make_env(name)
    inner, params = make(name)
    keys = jax.random.split(jax.random.key(3), 30)
    actions = jax.vmap(functools.partial(random_action, env))(keys)

    def ours(carry, inputs):
        step = env.step(inputs[0], carry, inputs[1])
        return step.state, (step.observation, step.reward)

    state, first = jax.jit(env.reset)(jax.random.key(4))
    _, (observations, rewards) = jax.lax.scan(ours, state, (keys, actions))

    theirs_first, their_state = jax.jit(inner.reset_env)(jax.random.key(4), params)
    step_env = jax.jit(inner.step_env)
    np.testing.assert_array_equal(first, theirs_first)
    for t in range(len(keys)):
        observation, their_state, reward, *_ = step_env(keys[t], their_state, actions[t], params)
        np.testing.assert_allclose(observations[t], observation, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(rewards[t], np.float32(reward), rtol=1e-5, atol=1e-5)


def test_params_vmap():
    env = make_env("CartPole-v1", gravity=9.0)
    assert env.params.gravity == 9 and env.params.gravity.dtype == jnp.float32
    state, _ = jax.jit(env.reset)(jax.random.key(0))
    state = state.replace(theta=jnp.float32(0.1))
    gravity = jnp.asarray([1.0, 9.8, 30.0])

    def velocity(gravity):
        return (
            env.replace(params=env.params.replace(gravity=gravity))
            .step(jax.random.key(1), state, jnp.int32(0))
            .state.theta_dot
        )

    batched = jax.jit(jax.vmap(velocity))(gravity)
    np.testing.assert_allclose(batched, [jax.jit(velocity)(g) for g in gravity], rtol=1e-6)
    assert np.all(np.diff(batched) > 0)

    limits = jax.vmap(lambda limit: env.replace(params=env.params.replace(max_steps_in_episode=limit)))(
        jnp.asarray([2, 3])
    )
    length, _, truncated, _ = jax.vmap(run, (0, None, None))(limits, jax.random.key(0), 10)
    assert length.tolist() == [2, 3] and np.all(truncated)


def test_equal_arguments_compile_once():
    traces = []

    @jax.jit
    def reset(env, key):
        traces.append(env.name)
        return env.reset(key)[1]

    for make in (
        lambda: make_env("FourRooms-misc", goal_fixed=[1, 1], fail_prob=0.1),
        lambda: make_env("gymnax/FourRooms-misc", goal_fixed=(1, 1), fail_prob=0.2),
    ):
        assert reset(make(), jax.random.key(0)).shape == (4,)
    assert traces == ["FourRooms-misc"]
    assert make_env("FourRooms-misc", use_visual_obs=True).observation_space.shape == (13, 13, 2)


@pytest.mark.parametrize(
    ("name", "settings", "error", "message"),
    [
        ("CartPole-v1", {"gravty": 9.8}, ValueError, "no setting 'gravty'; did you mean 'gravity'"),
        ("CartPole-v1", {"zzz": 1}, ValueError, "settings: max_steps_in_episode"),
        ("CartPole-v1", {"gravity": "strong"}, TypeError, "gravity must be a number, got 'strong'"),
        ("CartPole-v1", {"gravity": True}, TypeError, "gravity must be a number"),
        ("CartPole-v1", {"gravity": float("nan")}, ValueError, "gravity must be a number, got nan"),
        ("CartPole-v1", {"max_steps_in_episode": 2.5}, TypeError, "max_steps_in_episode must be an integer"),
        ("CartPole-v1", {"max_steps_in_episode": 0}, ValueError, "at least 1"),
        ("CartPole-v1", {"max_steps_in_episode": 2**40}, ValueError, "32 bits"),
        ("DeepSea-bsuite", {"size": 10**9}, ValueError, "size must be at most 4,096"),
        ("MetaMaze-misc", {"maze_size": 4}, ValueError, "cannot be built with"),
        ("MetaMaze-misc", {"normalize_time": 1}, TypeError, "true or false"),
        ("DiscountingChain-bsuite", {"reward_timestep": [1, 2]}, ValueError, "shape"),
    ],
)
def test_wrong_settings(name: str, settings: dict, error: type, message: str):
    with pytest.raises(error, match=message) as raised:
        make_env(name, **settings)
    assert "\n" not in str(raised.value) and name in str(raised.value)


def test_array_valued_settings():
    env = make_env("DiscountingChain-bsuite", reward_timestep=[2, 4, 6, 8, 10])
    assert env.params.reward_timestep.tolist() == [2, 4, 6, 8, 10]
    if MODERN:
        key = jax.random.key(5)
        assert make_env("DeepSea-bsuite", size=4, action_mapping_key=key).horizon == 4


@pytest.mark.skipif(not MODERN, reason="gymnax.register came with 1.x")
def test_tasks_registered_at_runtime():
    import gymnax
    from gymnax.environments import CartPole

    if "MyCartPole" not in gymnax.registered_envs:
        gymnax.register("MyCartPole", CartPole)
        try:
            assert make_env("MyCartPole").horizon == 500
        finally:
            gymnax.registered_envs.remove("MyCartPole")


def test_minatars_images_are_kept_as_booleans_and_seen_as_numbers() -> None:
    env = make_env("Breakout-MinAtar")
    _, image = env.reset(jax.random.key(0))
    assert image.dtype == env.observation_space.dtype == np.bool_
    encoder = Encoder(env.observation_space)
    params = encoder.init(jax.random.key(1), image)
    expected = encoder.apply(params, image.astype(np.float32))
    np.testing.assert_array_equal(encoder.apply(params, image), expected)
