"""XLand-MiniGrid's tasks under the environment protocol (optional: `pip install 'haepo_jax[xminigrid]'`).

Nikulin et al., "XLand-MiniGrid: Scalable Meta-Reinforcement Learning Environments in JAX" (arXiv 2312.12044).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from haepo_jax.envs.base import Array, Box, Discrete, PyTree, first_observation, space_of
from haepo_jax.envs.libraries import LibraryEnvironment, building, check_horizon, load
from haepo_jax.envs.settings import check_settings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class XMiniGridEnv(LibraryEnvironment):
    """An XLand-MiniGrid task; its state is the library's `TimeStep`, and its randomness that state's own.

    Of `params` only XLand's `ruleset` has leaves: `env.replace(params=...)` vmaps over rulesets.
    """

    def _reset(self, key: Array) -> tuple[PyTree, PyTree]:
        state = self.inner.reset(self.params, key)
        return state, state.observation

    def _step(self, key: Array, state: Any, action: Array) -> tuple[PyTree, PyTree, Any, Any, Any]:
        new = self.inner.step(self.params, state, action)
        # An end with a discount of 0 is the episode's own, any other one the time limit's.
        return new, new.observation, new.reward, new.last() & (new.discount == 0), new.last()


def make_xminigrid(task: str, **kwargs: Any) -> XMiniGridEnv:
    """Build the task `task` (`MiniGrid-Empty-5x5`, not `xminigrid/MiniGrid-Empty-5x5`).

    Args:
        task: of those that `list_envs` names.
        **kwargs: fields of the task's `EnvParams`: `max_steps`, `view_size`, `height`, ...

    Raises:
        ValueError: an unknown setting, or a value that the task refuses.
        TypeError: a setting of the wrong type.
        ImportError: xminigrid is not installed.
    """
    name = f"xminigrid/{task}"
    library = load(name, "XLand-MiniGrid", "xminigrid")
    inner, params = _build(library, task)
    check_settings(name, kwargs, {field.name: getattr(params, field.name) for field in dataclasses.fields(params)})
    with building(name, kwargs):
        return adapt_xminigrid(name, inner, params.replace(**kwargs))


@functools.cache
def _build(library: Any, task: str) -> Any:
    """The library's environment object: always the same one, because JAX's caches know it by identity."""
    return library.make(task)


def adapt_xminigrid(name: str, inner: Any, params: Any = None) -> XMiniGridEnv:
    """An environment object of the library, wrapped or not, with its params or its default ones.

    Raises:
        ValueError: no time limit.
    """
    params = inner.default_params() if params is None else params
    if params.max_steps is None:
        raise ValueError(f"{name}: params.max_steps is None, and a time limit is needed")
    horizon = check_horizon(name, "max_steps", params.max_steps)
    actions = Discrete(int(inner.num_actions(params)))
    env = XMiniGridEnv(jax.tree.map(jnp.asarray, params), inner, name, horizon, None, actions)
    return env.replace(observation_space=_observation_space(first_observation(env)))


def _observation_space(observation: Any) -> Any:
    """Unbounded boxes, but for the usual view (height, width, 2), whose entries are numbers of tiles and of colours."""
    if isinstance(observation, dict) or observation.dtype != jnp.uint8 or observation.shape[-1] != 2:
        return space_of(observation)
    return Box(0, 12, observation.shape, observation.dtype)
