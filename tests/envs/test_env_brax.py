"""Brax tasks: all of them abstractly, one of them for real."""

import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haepo_jax.envs import Box, check_environment, make_env, names
from haepo_jax.envs.brax import BACKENDS

pytest.importorskip("brax")

QUICK = ("fast", "inverted_pendulum", "swimmer")


@pytest.mark.parametrize(
    "task", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in names.tasks_of("brax")]
)
def test_protocol(task: str, capfd: pytest.CaptureFixture[str]):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = make_env(f"brax/{task}")
        check_environment(env)
    assert env.horizon == 1000 and env.action_space.bounded
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("task", sorted(set(names.tasks_of("brax")) - {"fast", "swimmer"}))
def test_every_backend(task: str, backend: str):
    check_environment(make_env(f"brax/{task}", backend=backend))


@pytest.mark.slow
def test_import_is_quiet():
    code = "from haepo_jax.envs import make_env; make_env('brax/halfcheetah', backend='spring')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("", "")


def rollout(env, key, steps):
    def body(state, key):
        step = env.step(key, state, jnp.full(env.action_space.shape, 0.5))
        return step.state, step

    return jax.lax.scan(body, env.reset(key)[0], jax.random.split(key, steps))[1]


def test_a_batch_of_pendulums_with_other_physics():
    env = make_env("brax/inverted_pendulum", backend="spring", episode_length=8)
    assert env.horizon == 8 and env.action_space == Box(-1.0, 1.0, (1,)) and env.observation_space.shape == (4,)

    def pushed(gear):
        actuator = env.params.actuator.replace(gear=gear)
        return rollout(env.replace(params=env.params.replace(actuator=actuator)), jax.random.key(0), 8)

    steps = jax.jit(jax.vmap(pushed))(env.params.actuator.gear * jnp.asarray([[0.0], [1.0], [2.0]]))
    assert np.all(np.isfinite(steps.observation)) and steps.reward.dtype == jnp.float32
    assert np.all(np.diff(steps.observation[:, 0, 2]) > 0), "a stronger motor gives the cart more speed"
    # Unpushed, the pole still stands at the time limit; pushed hardest, it has fallen. An end is never both kinds.
    assert steps.truncated[0].tolist() == [False] * 7 + [True] and not steps.terminated[0].any()
    assert steps.terminated[2].any() and not np.any(steps.terminated & steps.truncated)
    # The shared environment object was left alone.
    np.testing.assert_array_equal(env.inner.sys.actuator.gear, env.params.actuator.gear)


def test_fast_task_counts_its_own_steps():
    env = make_env("brax/fast", episode_length=3)
    steps = rollout(env, jax.random.key(0), 3)
    assert steps.truncated.tolist() == [False, False, True] and not steps.terminated.any()


def test_dictionary_observations():
    env = make_env("brax/fast", obs_mode="dict_pixels_state")
    check_environment(env)
    assert env.observation_space["pixels/view_0"].shape == (4, 4, 3) and env.observation_space["state"].shape == (2,)


def test_equal_arguments_have_equal_structure():
    make = lambda length: make_env("brax/reacher", backend="spring", episode_length=length)  # noqa: E731
    assert jax.tree.structure(make(10)) == jax.tree.structure(make(10)) != jax.tree.structure(make(20))


@pytest.mark.parametrize(
    ("name", "settings", "error", "message"),
    [
        ("brax/ant", {"backend": "sprung"}, ValueError, "backend must be one of generalized, spring"),
        ("brax/ant", {"backnd": "spring"}, ValueError, "did you mean 'backend'"),
        ("brax/ant", {"episode_length": 0}, ValueError, "episode_length must be at least 1"),
        ("brax/ant", {"episode_length": "long"}, TypeError, "episode_length must be an integer"),
        ("brax/swimmer", {"backend": "spring"}, ValueError, "Unsupported backend: spring"),
        ("brax/fast", {"backend": "spring"}, ValueError, "no setting 'backend'"),
    ],
)
def test_wrong_settings(name: str, settings: dict, error: type, message: str):
    with pytest.raises(error, match=message) as raised:
        make_env(name, **settings)
    assert "\n" not in str(raised.value)
