"""What Brax and MuJoCo Playground share: a `State` with obs, reward and done, and a physics model to be swapped."""

import contextlib
import copy
import dataclasses
import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from haepo_jax.envs.base import (
    Array,
    Box,
    PyTree,
    Replaceable,
    TimeStep,
    finish_step,
    space_of,
    static_field,
    strongly_typed,
)
from haepo_jax.envs.libraries import check_horizon


class PhysicsState(NamedTuple):
    """The library's own state, and the number of steps taken."""

    inner: Any
    steps: Array  # int32 ()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class PhysicsEnv(Replaceable):
    """A Brax or Playground task. Its leaves are `params`, the whole physics model (masses, friction, gains, gravity,
    ...).

    So `env.replace(params=env.params.replace(...))` is domain randomisation, and vmaps. Actions are in [-1, 1].
    """

    params: Any
    inner: Any = static_field()
    model_attribute: str = static_field()  # where `inner` keeps the model; empty where there is none
    name: str = static_field()
    horizon: int = static_field()
    observation_space: Any = static_field()
    action_space: Box = static_field()

    def reset(self, key: Array) -> tuple[PyTree, PyTree]:
        """Start an episode: (`PhysicsState`, observation)."""
        with _quiet_trace():
            inner = strongly_typed(self._with_params().reset(key))
        return PhysicsState(inner, jnp.zeros((), jnp.int32)), inner.obs

    def step(self, key: Array, state: PhysicsState, action: Array) -> TimeStep:
        """One control step; the physics draws no random numbers, so `key` is not used."""
        action = jnp.asarray(action, self.action_space.dtype)
        # Some tasks write into state.metrics, a dict: give them a copy of the containers.
        inner_state = jax.tree.map(lambda leaf: leaf, state.inner)
        with _quiet_trace():
            inner = self._with_params().step(inner_state, action)
        new_state = PhysicsState(inner, state.steps + 1)
        terminated, truncated = inner.done > 0.5, new_state.steps >= self.horizon
        return finish_step(self.name, state, new_state, inner.obs, inner.reward, terminated, truncated)

    def _with_params(self) -> Any:
        """`inner` with this model in place: on a shallow copy, because environments made alike share `inner`."""
        if not self.model_attribute:
            return self.inner
        inner = copy.copy(self.inner)
        setattr(inner, self.model_attribute, self.params)
        return inner


def make_physics(name: str, inner: Any, model_attribute: str, horizon: int) -> PhysicsEnv:
    """Wrap a Brax or Playground environment object; the observation's space is read off its reset.

    Raises:
        ValueError: a horizon below 1.
    """
    params = jax.tree.map(jnp.asarray, getattr(inner, model_attribute)) if model_attribute else ()
    env = PhysicsEnv(
        params=params,
        inner=inner,
        model_attribute=model_attribute,
        name=name,
        horizon=check_horizon(name, "episode_length", horizon),
        observation_space=None,
        action_space=Box(-1.0, 1.0, (int(inner.action_size),)),
    )
    _, observation = jax.eval_shape(env.reset, jax.eval_shape(lambda: jax.random.key(0)))
    return env.replace(observation_space=space_of(observation))


@contextlib.contextmanager
def _quiet_trace() -> Iterator[None]:
    """Brax reads MuJoCo's data by names that MuJoCo warns it will drop."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what the physics libraries print, log and warn of while they are imported and load a model."""
    level = logging.root.manager.disable
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
        contextlib.ExitStack() as stack,
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        stack.callback(logging.disable, level)
        mujoco: Any = importlib.import_module("mujoco")
        # MuJoCo's C code prints its warnings itself, and writes MUJOCO_LOG.TXT into the working directory.
        if hasattr(mujoco, "set_mju_user_warning"):
            previous = mujoco.get_mju_user_warning()
            mujoco.set_mju_user_warning(lambda message: None)
            stack.callback(mujoco.set_mju_user_warning, previous)
        yield
