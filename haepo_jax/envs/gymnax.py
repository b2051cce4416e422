"""gymnax tasks (1.x and 0.0.9) under the environment protocol.

Lange, "gymnax: A JAX-based Reinforcement Learning Environment Library" (2022). The two versions differ in what
`step_env` calls done: 1.x keeps the time limit apart, 0.0.9 folds it in.
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
from haepo_jax.envs.libraries import LibraryEnvironment, building, check_horizon, load
from haepo_jax.envs.settings import check_settings, constructor_settings, freeze

# Tasks that end by themselves long before their declared limit. A rollout's arrays are as long as the horizon, and
# Catch's 1000 declared steps for episodes of 9 would make every update a hundred times as costly.
_LONGEST_EPISODE: dict[str, Callable[[Any, Any], int]] = {
    "Catch-bsuite": lambda inner, params: inner.rows - 1,
    "DeepSea-bsuite": lambda inner, params: inner.size,
    "MemoryChain-bsuite": lambda inner, params: int(params.memory_length) + 1,
    "SimpleBandit-bsuite": lambda inner, params: 1,
    "UmbrellaChain-bsuite": lambda inner, params: int(params.chain_length),
}


LARGEST_SIZE = 4096
"""The most that a size among a constructor's arguments may be: DeepSea's table of that many rows and columns already
takes 64 MB, and past some 40,000 XLA ends the process."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class GymnaxEnv(LibraryEnvironment):
    """A gymnax task. Its leaves are gymnax's own `EnvParams`; its state is gymnax's own, and its observations are in the
    dtype that the task really yields, MinAtar's as bool."""

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
                # A task written for 0.0.x counts its time limit as done; asked without the limit, it tells them apart.
                terminated = self.inner.step_env(key, state, action, _without_limit(self.params))[3]
        truncated = jnp.logical_or(truncated, new_state.time >= self.horizon)
        return new_state, _compact(self.name, observation), reward, terminated, truncated


def make_gymnax(name: str, **kwargs: Any) -> GymnaxEnv:
    """Build the gymnax task `name`; `kwargs` are its constructor's arguments and fields of its `EnvParams`.

    Raises:
        ValueError: an unknown setting, a value the task refuses, or a task that the installed gymnax does not have.
        TypeError: a setting of the wrong type.
        ImportError: gymnax is not installed.
    """
    default = _build(name, ())
    constructor = constructor_settings(type(default).__init__)
    fields = {
        field.name: getattr(default.default_params, field.name) for field in dataclasses.fields(default.default_params)
    }
    # A few tasks store a whole number in a float: the limit is a count all the same.
    fields["max_steps_in_episode"] = int(fields["max_steps_in_episode"])
    check_settings(name, kwargs, {**constructor, **fields})
    if kwargs.get("max_steps_in_episode", 1) < 1:
        raise ValueError(f"{name}: max_steps_in_episode must be at least 1, got {kwargs['max_steps_in_episode']}")
    for key, value in kwargs.items():
        if isinstance(constructor.get(key), int) and not key.endswith("seed") and value > LARGEST_SIZE:
            raise ValueError(f"{name}: {key} must be at most {LARGEST_SIZE:,}, got {value}")

    arguments = tuple(sorted((key, freeze(value)) for key, value in kwargs.items() if key in constructor))
    with building(name, kwargs):
        inner = default if not arguments else _build(name, arguments)
        overrides = {key: kwargs[key] for key in kwargs if key not in constructor}
        return _adapt(name, inner, _parameters(inner.default_params, overrides))


def adapt_gymnax(name: str, inner: Any, params: Any = None) -> GymnaxEnv:
    """An object of gymnax's `Environment` class as it is, with its params or its default ones."""
    return _adapt(name, inner, _parameters(inner.default_params if params is None else params, {}))


def _adapt(name: str, inner: Any, params: Any) -> GymnaxEnv:
    horizon = check_horizon(name, "max_steps_in_episode", int(params.max_steps_in_episode))
    if name in _LONGEST_EPISODE:
        horizon = min(horizon, _LONGEST_EPISODE[name](inner, params))
    env = GymnaxEnv(params, inner, name, horizon, None, _space(inner.action_space(params)))
    spaces = jax.tree.map(_space, _plain(inner.observation_space(params)), first_observation(env))
    return env.replace(observation_space=spaces)


def _build(name: str, arguments: tuple[tuple[str, Any], ...]) -> Any:
    """gymnax's environment object: the same one for the same arguments, because JAX's caches know it by identity."""
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
    """Stands for a module that is imported when something of it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


@contextlib.contextmanager
def _without_plotting() -> Iterator[None]:
    """gymnax imports these for its pictures, which takes most of its two seconds; inside, they are only named."""
    later = {name: _Later(name) for name in ("seaborn", "matplotlib.pyplot") if name not in sys.modules}
    sys.modules.update(later)
    try:
        yield
    finally:
        for name, module in later.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _compact(name: str, observation: PyTree) -> PyTree:
    """MinAtar's images are of zeros and ones: a quarter of the memory as booleans, and the same to a network."""
    return observation.astype(bool) if name.endswith("-MinAtar") else observation


def _parameters(defaults: Any, overrides: dict[str, Any]) -> Any:
    """gymnax's parameters as arrays: Python numbers would be weakly typed, and no leaves to batch over."""
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
    """Undo a slip of gymnax 0.0.9: SimpleBandit puts (rewards, total_regret, time) into fields that begin with time."""
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
    """Our space for gymnax's. Declared dtypes are not to be trusted for observations: `actual` decides."""
    if hasattr(space, "n"):
        return Discrete(int(space.n))
    shape = tuple(space.shape) if actual is None else actual.shape
    dtype = np.dtype(np.float32) if actual is None else actual.dtype
    # gymnax, as Gym, writes the largest float for no bound at all.
    largest = float(np.finfo(np.float32).max)
    low, high = (np.asarray(bound, np.float64) for bound in (space.low, space.high))
    lowest: Any = np.where(low <= -largest, -np.inf, low)
    highest: Any = np.where(high >= largest, np.inf, high)
    return Box(lowest, highest, shape, dtype)
