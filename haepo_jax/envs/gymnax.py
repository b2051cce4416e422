"""gymnax tasks (1.x and 0.0.9) under the environment protocol.

Lange, "gymnax: A JAX-based Reinforcement Learning Environment Library" (2022). The `done` of `step_env` includes the
time limit in 0.0.9, but not in 1.x.
"""

import contextlib
import dataclasses
import functools
import importlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from haepo_jax.envs.base import Array, Box, Discrete, PyTree, first_observation
from haepo_jax.envs.kwargs import check_range, check_settings, constructor_settings, freeze
from haepo_jax.envs.libraries import LibraryEnvironment, check_horizon, library_errors, load

# Tasks that terminate long before their declared limit. Rollout buffers are as long as the horizon, and the declared
# 1000 steps of Catch, whose episodes have 9, would make every update a hundred times as expensive.
_LONGEST_EPISODE: dict[str, Callable[[Any, Any], int]] = {
    "Catch-bsuite": lambda inner, params: inner.rows - 1,
    "DeepSea-bsuite": lambda inner, params: inner.size,
    "MemoryChain-bsuite": lambda inner, params: int(params.memory_length) + 1,
    "SimpleBandit-bsuite": lambda inner, params: 1,
    "UmbrellaChain-bsuite": lambda inner, params: int(params.chain_length),
}


LARGEST_SIZE = 4096
"""The largest size allowed as a constructor argument: DeepSea's table with this many rows and columns takes 64 MB, and
beyond about 40,000 XLA aborts the process."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class GymnaxEnv(LibraryEnvironment):
    """A gymnax task. Its leaves are gymnax's `EnvParams`, and its state is gymnax's. Observations have the dtype that
    the task actually returns; those of MinAtar are cast to bool."""

    def _reset(self, key: Array) -> tuple[PyTree, PyTree]:
        observation, state = self.inner.reset_env(key, self.params)
        return _in_declared_order(state), _compact(self.name, observation)

    def _step(self, key: Array, state: Any, action: Array) -> tuple[PyTree, PyTree, Any, Any, Any]:
        observation, new_state, reward, done, _ = self.inner.step_env(key, state, action, self.params)
        new_state = _in_declared_order(new_state)
        if not hasattr(self.inner, "is_truncated"):  # gymnax 0.0.x
            terminated = self.inner.is_terminal(new_state, _without_limit(self.params))
            truncated = new_state.time >= self.params.max_steps_in_episode
        else:
            terminated, truncated = done, self.inner.is_truncated(new_state, self.params)
            if not type(self.inner).__module__.startswith("gymnax."):
                # A task written for 0.0.x includes the time limit in `done`; a step without the limit separates them.
                terminated = self.inner.step_env(key, state, action, _without_limit(self.params))[3]
        truncated = jnp.logical_or(truncated, new_state.time >= self.horizon)
        return new_state, _compact(self.name, observation), reward, terminated, truncated


def make_gymnax(name: str, **kwargs: Any) -> GymnaxEnv:
    """Creates the gymnax task `name`; `kwargs` are constructor arguments and fields of its `EnvParams`.

    Raises:
        ValueError: an unknown setting, an invalid value, or a task that the installed gymnax does not have.
        TypeError: a setting of the wrong type.
        ImportError: gymnax is not installed.
    """
    default = _build(name, ())
    constructor = constructor_settings(type(default).__init__)
    fields = vars(default.default_params)
    # A few tasks store this integer as a float.
    steps = {"max_steps_in_episode": int(fields["max_steps_in_episode"])}
    check_settings(name, kwargs, {**constructor, **fields, **steps})
    check_range(f"{name}: max_steps_in_episode", kwargs.get("max_steps_in_episode", 1), 1)
    for key, value in kwargs.items():
        if isinstance(constructor.get(key), int) and not key.endswith("seed") and value > LARGEST_SIZE:
            raise ValueError(f"{name}: {key} must be at most {LARGEST_SIZE:,}, got {value}")

    overrides = {key: value for key, value in kwargs.items() if key not in constructor}
    with library_errors(name, kwargs):
        inner = _build(name, freeze({key: value for key, value in kwargs.items() if key in constructor}))
        return _adapt(name, inner, _parameters(inner.default_params, overrides))


def adapt_gymnax(name: str, inner: Any, params: Any = None) -> GymnaxEnv:
    """Adapts an instance of gymnax's `Environment`, with its params or the default ones."""
    with jax.ensure_compile_time_eval():  # the time limit is a Python integer in a traced function, too
        return _adapt(name, inner, _parameters(inner.default_params if params is None else params, {}))


def _adapt(name: str, inner: Any, params: Any) -> GymnaxEnv:
    horizon = check_horizon(name, "max_steps_in_episode", int(params.max_steps_in_episode))
    if name in _LONGEST_EPISODE:
        horizon = min(horizon, _LONGEST_EPISODE[name](inner, params))
    env = GymnaxEnv(params, inner, name, horizon, None, _space(inner.action_space(params)))
    spaces = jax.tree.map(_space, _plain(inner.observation_space(params)), first_observation(env))
    return env.replace(observation_space=spaces)


def _build(name: str, arguments: tuple[tuple[str, Any], ...]) -> Any:
    """gymnax's environment object, cached by its arguments because JAX's caches compare it by identity."""
    try:
        hash(arguments)
    except TypeError:  # an array among the arguments
        return _construct(name, arguments)
    return _construct_once(name, arguments)


def _construct(name: str, arguments: tuple[tuple[str, Any], ...]) -> Any:
    with _without_plotting():
        registration = load(name, "gymnax", "gymnax.registration")
    return registration.make(name, **dict(arguments))[0]


_construct_once = functools.cache(_construct)


class _Later(types.ModuleType):
    """A placeholder for a module that is imported on first use."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


@contextlib.contextmanager
def _without_plotting() -> Iterator[None]:
    """Defers the import of gymnax's plotting libraries, which takes most of its import time of two seconds."""
    later = {name: _Later(name) for name in ("seaborn", "matplotlib.pyplot") if name not in sys.modules}
    sys.modules.update(later)
    try:
        yield
    finally:
        for name, module in later.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _compact(name: str, observation: PyTree) -> PyTree:
    """Casts MinAtar's images of zeros and ones to bool, a quarter of the memory with no difference to a network."""
    return observation.astype(bool) if name.endswith("-MinAtar") else observation


def _parameters(defaults: Any, overrides: dict[str, Any]) -> Any:
    """gymnax's parameters as arrays: Python numbers would be weakly typed and could not be batched."""
    changes = {}
    for field in dataclasses.fields(defaults):
        default = jnp.asarray(getattr(defaults, field.name))
        with np.errstate(over="raise"):
            value = jnp.asarray(overrides.get(field.name, default), default.dtype)
        if value.shape != default.shape:
            raise ValueError(f"{field.name} must have shape {default.shape}, got {value.shape}")
        changes[field.name] = jax.lax.convert_element_type(value, default.dtype)
    return defaults.replace(**changes)


def _without_limit(params: Any) -> Any:
    limit = params.max_steps_in_episode
    largest = jnp.finfo(limit.dtype).max if jnp.issubdtype(limit.dtype, jnp.floating) else jnp.iinfo(limit.dtype).max
    return params.replace(max_steps_in_episode=jnp.full_like(limit, largest))


def _in_declared_order(state: Any) -> Any:
    """Works around a bug of gymnax 0.0.9: SimpleBandit assigns rewards, total_regret and time to the wrong fields."""
    if jnp.ndim(state.time) == 0:
        return state
    return type(state)(rewards=state.time, total_regret=state.rewards, time=state.total_regret)


def _plain(space: Any) -> Any:
    """gymnax's Dict and Tuple spaces as dicts and tuples."""
    children = getattr(space, "spaces", None)
    if children is None:
        return space
    if isinstance(children, dict):
        return {key: _plain(child) for key, child in children.items()}
    return tuple(_plain(child) for child in children)


def _space(space: Any, actual: jax.ShapeDtypeStruct | None = None) -> Discrete | Box:
    """Converts a gymnax space; `actual` overrides the shape and the dtype, which gymnax may declare wrongly."""
    if hasattr(space, "n"):
        return Discrete(int(space.n))
    shape = tuple(space.shape) if actual is None else actual.shape
    dtype = np.dtype(np.float32) if actual is None else actual.dtype
    # Like Gym, gymnax uses the largest float for "unbounded".
    largest = float(np.finfo(np.float32).max)
    low, high = (np.asarray(bound, np.float64) for bound in (space.low, space.high))
    lowest: Any = np.where(low <= -largest, -np.inf, low)
    highest: Any = np.where(high >= largest, np.inf, high)
    return Box(lowest, highest, shape, dtype)
