"""Shared adapter of Brax and MuJoCo Playground, whose physics model can be replaced."""

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

from haepo_jax.envs.base import Array, Box, PyTree, first_observation, space_of, static_field, strongly_typed
from haepo_jax.envs.libraries import LibraryEnvironment, check_horizon


class PhysicsState(NamedTuple):
    """The library's state, and the number of steps taken."""

    inner: Any
    steps: Array  # int32 ()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class PhysicsEnv(LibraryEnvironment):
    """A Brax or Playground task. Its leaves are the whole physics model (masses, friction, gains, gravity, ...), so
    `env.replace(params=env.params.replace(...))` allows domain randomisation. Actions are in [-1, 1].
    """

    model_attribute: str = static_field()  # the attribute of `inner` that holds the model; "" if there is none

    def _reset(self, key: Array) -> tuple[PyTree, PyTree]:
        inner = strongly_typed(self._with_params().reset(key))
        return PhysicsState(inner, jnp.zeros((), jnp.int32)), inner.obs

    def _step(self, key: Array, state: PhysicsState, action: Array) -> tuple[PyTree, PyTree, Any, Any, Any]:
        """One step. The physics is deterministic, so `key` is not used."""
        # Some tasks modify the dict state.metrics in place, so pass a copy of the containers.
        inner_state = jax.tree.map(lambda leaf: leaf, state.inner)
        inner = self._with_params().step(inner_state, action)
        new = PhysicsState(inner, state.steps + 1)
        return new, inner.obs, inner.reward, inner.done > 0.5, new.steps >= self.horizon

    def _with_params(self) -> Any:
        """A shallow copy of `inner` with this model; `inner` is shared by environments with the same arguments."""
        if not self.model_attribute:
            return self.inner
        inner = copy.copy(self.inner)
        setattr(inner, self.model_attribute, self.params)
        return inner


def make_physics(name: str, inner: Any, model_attribute: str, horizon: int) -> PhysicsEnv:
    """Adapts a Brax or Playground environment object; its observation space is derived from `reset`.

    Raises:
        ValueError: a horizon below 1.
    """
    params = jax.tree.map(jnp.asarray, getattr(inner, model_attribute)) if model_attribute else ()
    horizon = check_horizon(name, "episode_length", horizon)
    actions = Box(-1.0, 1.0, (int(inner.action_size),))
    env = PhysicsEnv(params, inner, name, horizon, None, actions, model_attribute)
    return env.replace(observation_space=space_of(first_observation(env)))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the output, logs and warnings of the physics libraries while they are imported and load a model."""
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
        # MuJoCo's C code prints warnings directly, and writes MUJOCO_LOG.TXT to the working directory.
        if hasattr(mujoco, "set_mju_user_warning"):
            previous = mujoco.get_mju_user_warning()
            mujoco.set_mju_user_warning(lambda message: None)
            stack.callback(mujoco.set_mju_user_warning, previous)
        yield
