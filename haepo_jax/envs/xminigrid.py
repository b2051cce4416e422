"""XLand-MiniGrid tasks under the environment protocol (optional: `pip install 'haepo_jax[xminigrid]'`).

Nikulin et al., "XLand-MiniGrid: Scalable Meta-Reinforcement Learning Environments in JAX" (arXiv 2312.12044).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from haepo_jax.envs.base import Array, Box, Discrete, PyTree, first_observation, space_of
from haepo_jax.envs.kwargs import check_settings
from haepo_jax.envs.libraries import LibraryEnvironment, check_horizon, library_errors, load, make


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class XMiniGridEnv(LibraryEnvironment):
    """An XLand-MiniGrid task; its state is the library's `TimeStep`, which also holds the PRNG key.

    In `params` only XLand's `ruleset` has leaves: `env.replace(params=...)` can be vmapped over rulesets.
    """

    def _reset(self, key: Array) -> tuple[PyTree, PyTree]:
        state = self.inner.reset(self.params, key)
        return state, state.observation

    def _step(self, key: Array, state: Any, action: Array) -> tuple[PyTree, PyTree, Any, Any, Any]:
        new = self.inner.step(self.params, state, action)
        # A discount of 0 marks termination; other ends are due to the time limit.
        return new, new.observation, new.reward, new.last() & (new.discount == 0), new.last()


def make_xminigrid(task: str, **kwargs: Any) -> XMiniGridEnv:
    """Creates the task `task` (`MiniGrid-Empty-5x5`, not `xminigrid/MiniGrid-Empty-5x5`).

    Args:
        task: one of the tasks in `list_envs`.
        **kwargs: fields of the task's `EnvParams`: `max_steps`, `view_size`, `height`, ...

    Raises:
        ValueError: an unknown setting, or an invalid value.
        TypeError: a setting of the wrong type.
        ImportError: xminigrid is not installed.
    """
    name = f"xminigrid/{task}"
    library = load(name, "XLand-MiniGrid", "xminigrid")
    inner, params = make(library, task)
    check_settings(name, kwargs, vars(params))
    with library_errors(name, kwargs):
        return adapt_xminigrid(name, inner, params.replace(**kwargs))


def adapt_xminigrid(name: str, inner: Any, params: Any = None) -> XMiniGridEnv:
    """Adapts an environment object of the library, wrapped or not, with its params or the default ones.

    Raises:
        ValueError: there is no time limit.
    """
    params = inner.default_params() if params is None else params
    if params.max_steps is None:
        raise ValueError(f"{name}: params.max_steps is None, but a time limit is required")
    horizon = check_horizon(name, "max_steps", params.max_steps)
    actions = Discrete(int(inner.num_actions(params)))
    env = XMiniGridEnv(jax.tree.map(jnp.asarray, params), inner, name, horizon, None, actions)
    return env.replace(observation_space=_observation_space(first_observation(env)))


def _observation_space(observation: Any) -> Any:
    """Unbounded boxes, except for the usual view (height, width, 2) of tile and colour indices."""
    if isinstance(observation, dict) or observation.dtype != jnp.uint8 or observation.shape[-1] != 2:
        return space_of(observation)
    return Box(0, 12, observation.shape, observation.dtype)
