"""Environment objects of other libraries, passed on as they are."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haepo_jax as hx
from haepo_jax.envs import check_environment

SMALL: dict[str, Any] = {"total_steps": 200, "num_envs": 8, "group_size": 4, "num_minibatches": 2, "num_epochs": 1}


def traced(algorithm: Any) -> None:
    """An update can be compiled for this environment."""
    jax.eval_shape(algorithm.train_step, jax.eval_shape(algorithm.init, jax.random.key(0)))


def test_a_gymnax_object_with_and_without_its_params() -> None:
    gymnax = pytest.importorskip("gymnax.registration")
    inner, params = gymnax.make("CartPole-v1")
    for obj, horizon in ((inner, 500), ((inner, params), 500), ((inner, params.replace(max_steps_in_episode=30)), 30)):
        env = hx.make_env(obj)
        check_environment(env)
        assert env.horizon == horizon and env.name == "CartPole-v1" and env.inner is inner
    algorithm = hx.HAEPO((inner, params.replace(max_steps_in_episode=30)), **SMALL)
    assert algorithm.env.horizon == 30
    traced(algorithm)


def test_ones_own_subclass_of_gymnax() -> None:
    classes = pytest.importorskip("gymnax.environments.classic_control.cartpole")

    class Heavy(classes.CartPole):  # type: ignore[misc, name-defined]
        @property
        def default_params(self) -> Any:
            return dataclasses.replace(super().default_params, masspole=1.0)

    assert float(hx.make_env(Heavy()).params.masspole) == 1.0


def test_a_task_written_for_gymnax_0_0_keeps_its_truncations() -> None:
    """There `done` holds the time limit, too; where nothing else ends the episode, that is a truncation."""
    classes = pytest.importorskip("gymnax.environments.classic_control.pendulum")

    class Old(classes.Pendulum):  # type: ignore[misc, name-defined]
        def is_terminal(self, state: Any, params: Any) -> Any:
            return (state.time >= params.max_steps_in_episode) | (state.time >= 7)

        def step_env(self, key: Any, state: Any, action: Any, params: Any) -> Any:
            observation, state, reward, _, info = super().step_env(key, state, action, params)
            return observation, state, reward, self.is_terminal(state, params), info

    inner = Old()
    for limit, ends in ((5, (False, True)), (9, (True, False))):
        env = hx.make_env((inner, inner.default_params.replace(max_steps_in_episode=limit)))
        state, _ = env.reset(jax.random.key(0))
        for _ in range(min(limit, 7)):
            after = env.step(jax.random.key(1), state, jnp.zeros(1))
            state = after.state
        assert (bool(after.terminated), bool(after.truncated)) == ends


def test_a_brax_object() -> None:
    envs = pytest.importorskip("brax.envs")
    inner = envs.get_environment("fast")
    env = hx.make_env(inner, episode_length=20)
    check_environment(env)
    assert env.horizon == 20 and env.name.startswith("brax/")
    assert hx.PPO(inner, num_envs=4).env.horizon == 1000
    with pytest.raises(TypeError, match="remove AutoResetWrapper"):
        hx.make_env(envs.wrappers.training.AutoResetWrapper(inner))
    with pytest.raises(TypeError, match="remove EpisodeWrapper"):
        hx.make_env(envs.wrappers.training.EpisodeWrapper(inner, 10, 1))
    with pytest.raises(TypeError, match="has no params; pass the environment alone"):
        hx.make_env((inner, None))
    with pytest.raises(ValueError, match="no setting 'episode_lenght'; did you mean 'episode_length'"):
        hx.make_env(inner, episode_lenght=3)


def test_a_jumanji_object() -> None:
    jumanji = pytest.importorskip("jumanji")
    from jumanji.wrappers import AutoResetWrapper

    inner = jumanji.make("Snake-v1", num_rows=4, num_cols=4, time_limit=10)
    env = hx.make_env(inner)
    check_environment(env)
    assert env.horizon == 10 and env.name == "jumanji/Snake"
    algorithm = hx.HAEPO(inner, **SMALL)
    traced(algorithm)
    with pytest.raises(TypeError, match="remove AutoResetWrapper"):
        hx.make_env(AutoResetWrapper(inner))
    with pytest.raises(ValueError, match=r"is multi-agent, with rewards of shape \(2,\); a scalar reward is required"):
        hx.make_env(jumanji.make("LevelBasedForaging-v0"))


def test_a_pgx_object_and_its_opponent() -> None:
    pytest.importorskip("pgx")
    from pgx.go import Go

    env = hx.make_env(Go(size=5), opponent=lambda key, observation, valid: valid.argmax())
    check_environment(env)
    assert env.horizon == 25 and env.action_space.n == 26


def test_an_xminigrid_object_with_a_ruleset() -> None:
    xminigrid = pytest.importorskip("xminigrid")
    from xminigrid.types import RuleSet
    from xminigrid.wrappers import DirectionObservationWrapper, GymAutoResetWrapper

    inner, params = xminigrid.make("XLand-MiniGrid-R1-9x9")
    near, ball = jnp.array([1, 3, 1, 0, 0], jnp.uint8), jnp.array([[3, 1]], jnp.uint8)
    ruleset = RuleSet(goal=near, rules=params.ruleset.rules, init_tiles=ball)
    env = hx.make_env((DirectionObservationWrapper(inner), params.replace(ruleset=ruleset)))
    check_environment(env)
    assert set(env.observation_space) == {"img", "direction"}
    np.testing.assert_array_equal(env.reset(jax.random.key(0))[0].state.goal_encoding, ruleset.goal)
    with pytest.raises(TypeError, match="remove GymAutoResetWrapper"):
        hx.make_env((GymAutoResetWrapper(inner), params))


def test_a_craftax_object() -> None:
    if importlib.util.find_spec("craftax") is None:
        pytest.skip("not installed")
    from craftax.craftax_env import make_craftax_env_from_name

    for auto_reset in (False, True):  # `step_env` never resets
        inner = make_craftax_env_from_name("Craftax-Classic-Symbolic-v1", auto_reset=auto_reset)
        env = hx.make_env((inner, inner.default_params.replace(max_timesteps=9)))
        assert env.horizon == 9
    check_environment(env)


def test_what_is_no_environment() -> None:
    for obj in (object(), (1, 2)):
        with pytest.raises(TypeError, match="is not an environment: it has no name, horizon"):
            hx.make_env(obj)
    with pytest.raises(TypeError, match="is not an environment"):
        hx.HAEPO((1, 2))
    # What looks like a pytree with an environment in it is seen when a run begins.
    for nothing in (None, {}):
        with pytest.raises(TypeError, match="is not an environment: it has no name, horizon"):
            hx.PPO(nothing).init(jax.random.key(0))
        with pytest.raises(TypeError, match="is not an environment: it has no name, horizon"):
            hx.train(hx.PPO(nothing), progress=False)


def test_wrappers_of_gymnax_are_not_needed() -> None:
    wrappers = pytest.importorskip("gymnax.wrappers")
    inner, params = pytest.importorskip("gymnax.registration").make("CartPole-v1")
    for obj, message in (
        (
            wrappers.FlattenObservationWrapper(inner),
            "remove FlattenObservationWrapper: the networks flatten observations",
        ),
        (
            (wrappers.LogWrapper(inner), params),
            "remove LogWrapper: the rollout keeps the returns and lengths of episodes",
        ),
    ):
        with pytest.raises(TypeError, match=message):
            hx.make_env(obj)


def test_params_of_gymnax_may_be_traced() -> None:
    """Algorithms are built inside a compiled function, as PureJaxRL does, with the same steps as outside."""
    env, params = pytest.importorskip("gymnax").make("CartPole-v1")

    def rewards(force: jax.Array) -> jax.Array:
        made = hx.PPO((env, params.replace(force_mag=force)), total_steps=64).env
        assert made.horizon == 500
        state, _ = made.reset(jax.random.key(0))
        return made.step(jax.random.key(1), state, jnp.int32(1)).observation

    forces = jnp.array([5.0, 20.0])
    found = jax.jit(jax.vmap(rewards))(forces)
    np.testing.assert_allclose(found, jnp.stack([rewards(force) for force in forces]), rtol=1e-6)
    assert found[0, 1] < found[1, 1]


def test_an_object_with_params_takes_its_settings_from_them() -> None:
    env, _ = pytest.importorskip("gymnax").make("CartPole-v1")
    with pytest.raises(ValueError, match=r"pass its params beside it, \(env, params.replace\(force_mag=...\)\)"):
        hx.make_env(env, force_mag=5.0)


def test_an_object_of_the_protocol_takes_no_settings() -> None:
    with pytest.raises(ValueError, match="takes no settings"):
        hx.make_env(hx.make_env("haepo/bandit"), num_arms=3)
