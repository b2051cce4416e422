"""MuJoCo Playground, where it is installed; else the line that says how to install it."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haepo_jax.envs import check_environment, list_envs, make_env

INSTALLED = importlib.util.find_spec("mujoco_playground") is not None


@pytest.mark.skipif(INSTALLED, reason="it is installed")
def test_absent():
    assert not any(name.startswith("playground/") for name in list_envs())
    with pytest.raises(ImportError, match=r"pip install 'haepo_jax\[playground\]'") as raised:
        make_env("playground/CartpoleBalance")
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(not INSTALLED, reason="the playground extra is not installed")
@pytest.mark.parametrize("task", ["CartpoleBalance", "CheetahRun", "ReacherEasy", "HumanoidWalk"])
def test_protocol(task: str):
    env = make_env(f"playground/{task}")
    check_environment(env)
    assert env.horizon == 1000


@pytest.mark.skipif(not INSTALLED, reason="the playground extra is not installed")
def test_a_setting_without_effect_is_refused():
    """Playground's environments do not repeat actions; the wrapper for its own training does."""
    with pytest.raises(ValueError, match="has no setting 'action_repeat'"):
        make_env("playground/CartpoleBalance", action_repeat=4)


@pytest.mark.skipif(not INSTALLED, reason="the playground extra is not installed")
@pytest.mark.slow
def test_rollout_and_settings():
    env = make_env("playground/CartpoleBalance", episode_length=5)

    @jax.jit
    def rollout(env, key):
        def body(state, key):
            step = env.step(key, state, jnp.full((1,), 0.5))
            return step.state, step

        return jax.lax.scan(body, env.reset(key)[0], jax.random.split(key, 5))[1]

    steps = jax.vmap(rollout, (None, 0))(env, jax.random.split(jax.random.key(0), 2))
    assert np.all(np.isfinite(steps.observation)) and steps.truncated[:, -1].all() and not steps.terminated.any()
    heavier = jnp.asarray([1.0, 3.0])
    batch = jax.vmap(lambda scale: env.replace(params=env.params.replace(body_mass=scale * env.params.body_mass)))(
        heavier
    )
    light, heavy = jax.vmap(rollout, (0, None))(batch, jax.random.key(0)).observation
    assert not np.allclose(light, heavy)
    with pytest.raises(ValueError, match="did you mean 'episode_length'"):
        make_env("playground/CartpoleBalance", episode_lenght=5)
