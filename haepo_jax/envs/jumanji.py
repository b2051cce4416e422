"""Jumanji tasks under the environment protocol (optional: `pip install 'haepo_jax[jumanji]'`).

Bonnet et al., "Jumanji: a Diverse Suite of Scalable Reinforcement Learning Environments in JAX" (arXiv 2306.09884). The
randomness of an episode comes from the key in Jumanji's state, so episodes with the same initial state share it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haepo_jax.envs.base import Array, Box, Discrete, PyTree, first_observation, static_field, strongly_typed
from haepo_jax.envs.kwargs import check_settings, constructor_settings, freeze
from haepo_jax.envs.libraries import LibraryEnvironment, check_horizon, library_errors, load
from haepo_jax.messages import short
from haepo_jax.spaces import MultiDiscrete

# Tasks without a time limit: the maximum episode length, given the environment.
_LONGEST_EPISODE: dict[str, Callable[[Any], int]] = {
    "BinPack": lambda inner: inner.generator.max_num_items,
    "CVRP": lambda inner: 2 * inner.num_nodes,
    "FlatPack": lambda inner: inner.num_blocks,
    "GraphColoring": lambda inner: inner.num_nodes,
    "Knapsack": lambda inner: inner.num_items,
    "Minesweeper": lambda inner: inner.num_rows * inner.num_cols - inner.num_mines,
    "Sudoku": lambda inner: 81,
    "TSP": lambda inner: inner.num_cities,
}
LARGEST_ONE_HOT = 256
"""The largest size of a `Discrete` observation; Jumanji's larger discrete observations are counts, such as of steps."""


class JumanjiState(NamedTuple):
    """Jumanji's state; the mask of valid actions, if the task has one; and int32 (), the steps taken."""

    inner: Any
    valid: Any
    steps: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class JumanjiEnv(LibraryEnvironment):
    """A Jumanji task. Observations are nested dicts; an action mask in them becomes the environment's `action_mask`.

    An action of several integers is a `MultiDiscrete` if each has its own mask, and a `Discrete` over all combinations
    if the mask is over combinations, so that the mask is exact.
    """

    combined: tuple[int, ...] = static_field()  # sizes of the integers that are combined to one Discrete
    masked: bool = static_field()

    def _reset(self, key: Array) -> tuple[PyTree, PyTree]:
        inner, step = self.inner.reset(key)
        observation, valid = self._split(step.observation)
        return JumanjiState(inner, valid, jnp.zeros((), jnp.int32)), observation

    def _step(self, key: Array, state: JumanjiState, action: Array) -> tuple[PyTree, PyTree, Any, Any, Any]:
        if self.combined:
            action = jnp.stack(jnp.unravel_index(action, self.combined))
        inner, step = self.inner.step(state.inner, jnp.asarray(action, self.inner.action_spec.dtype))
        observation, valid = self._split(step.observation)
        new = JumanjiState(inner, valid, state.steps + 1)
        # A discount of 0 marks termination, in most tasks their time limit, too: they observe the number of steps taken.
        # Other ends are truncations.
        terminated = step.last() & (step.discount == 0)
        return new, observation, step.reward, terminated, step.last() | (new.steps >= self.horizon)

    @property
    def action_mask(self) -> Callable[[JumanjiState], Array] | None:
        """state -> the valid actions; None if the task has no mask."""
        return (lambda state: state.valid) if self.masked else None

    def _split(self, observation: Any) -> tuple[PyTree, Array | None]:
        """Splits Jumanji's observation into a dict and the action mask."""
        plain = strongly_typed(_plain(observation))
        if not self.masked:
            return plain, None
        mask = plain.pop("action_mask")
        return plain, mask.reshape(-1)


def make_jumanji(task: str, *, episode_length: int | None = None, **kwargs: Any) -> JumanjiEnv:
    """Creates the Jumanji task `task` (`Snake-v1`, not `jumanji/Snake-v1`).

    Args:
        task: one of the tasks in `list_envs`.
        episode_length: a time limit for tasks that have none; None: the task's maximum episode length, or 1000.
        **kwargs: constructor arguments of the task: `time_limit`, `num_rows`, ...

    Raises:
        ValueError: an unknown setting, or an invalid value.
        TypeError: a setting of the wrong type.
        ImportError: Jumanji is not installed.
    """
    name = f"jumanji/{task}"
    load(name, "Jumanji", "jumanji")
    settings = {"episode_length": 1000, **constructor_settings(type(_build(name, task, ())).__init__)}
    given = kwargs if episode_length is None else {"episode_length": episode_length, **kwargs}
    check_settings(name, given, settings)
    with library_errors(name, kwargs):
        inner = _build(name, task, freeze(kwargs))
        return adapt_jumanji(name, inner, episode_length=episode_length)


@functools.cache
def _build(name: str, task: str, arguments: tuple[tuple[str, Any], ...]) -> Any:
    """Jumanji's environment object, cached by its arguments because JAX's caches compare it by identity."""
    return load(name, "Jumanji", "jumanji").make(task, **dict(arguments))


def adapt_jumanji(name: str, inner: Any, *, episode_length: int | None = None) -> JumanjiEnv:
    """Adapts an instance of Jumanji's `Environment`.

    Raises:
        ValueError: it returns several rewards per step, or its actions are not supported.
    """
    if inner.reward_spec.shape != ():
        raise ValueError(
            f"{name} is multi-agent, with rewards of shape {inner.reward_spec.shape}; a scalar reward is required"
        )
    spec = inner.observation_spec
    mask_shape = getattr(getattr(spec, "action_mask", None), "shape", None)
    action_space, combined = _action_space(name, inner.action_spec, mask_shape)
    if episode_length is None:
        longest = _LONGEST_EPISODE.get(type(inner.unwrapped).__name__)
        episode_length = getattr(inner, "time_limit", None) or (longest(inner.unwrapped) if longest else 1000)
    horizon = check_horizon(name, "episode_length", episode_length)
    env = JumanjiEnv((), inner, name, horizon, None, action_space, combined, mask_shape is not None)
    return env.replace(observation_space=_observation_space(spec, first_observation(env)))


def _action_space(name: str, spec: Any, mask_shape: tuple[int, ...] | None) -> tuple[Any, tuple[int, ...]]:
    if np.issubdtype(spec.dtype, np.floating) and hasattr(spec, "maximum"):
        return _box(spec, spec.shape, spec.dtype), ()
    if not hasattr(spec, "num_values"):
        raise ValueError(f"{name}: actions of {short(spec)} are not supported")
    sizes = tuple(np.asarray(spec.num_values).reshape(-1).tolist())
    if spec.shape == ():
        return Discrete(*sizes), ()
    if mask_shape == sizes:
        return Discrete(math.prod(sizes)), sizes
    if len(spec.shape) == 1 and (mask_shape is None or all((len(sizes), size) == mask_shape for size in sizes)):
        return MultiDiscrete(sizes), ()
    raise ValueError(f"{name}: actions of sizes {sizes} with a mask of shape {mask_shape} are not supported")


def _plain(observation: Any) -> Any:
    """NamedTuples and dataclasses as dicts."""
    if hasattr(observation, "_asdict"):
        observation = observation._asdict()
    elif dataclasses.is_dataclass(observation):
        observation = {field.name: getattr(observation, field.name) for field in dataclasses.fields(observation)}
    if isinstance(observation, dict):
        return {name: _plain(part) for name, part in observation.items()}
    return observation


def _observation_space(spec: Any, actual: Any) -> Any:
    """Converts Jumanji's spec to a space, with the shapes and dtypes of an `actual` observation."""
    if isinstance(actual, dict):
        return {name: _observation_space(getattr(spec, name), part) for name, part in actual.items()}
    count = getattr(spec, "num_values", None)
    if count is not None and np.ndim(count) == 0 and count <= LARGEST_ONE_HOT:
        return Discrete(int(count))
    return _box(spec, actual.shape, actual.dtype)


def _box(spec: Any, shape: tuple[int, ...], dtype: Any) -> Box:
    low: Any = np.asarray(getattr(spec, "minimum", -np.inf), np.float64)
    high: Any = np.asarray(getattr(spec, "maximum", np.inf), np.float64)
    return Box(low, high, shape, dtype)
