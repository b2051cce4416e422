"""Craftax and Craftax-Classic under the environment protocol (optional: `pip install 'haepo_jax[craftax]'`).

Matthews et al., "Craftax: A Lightning-Fast Benchmark for Open-Ended Reinforcement Learning" (arXiv 2402.16801). On
first use of pixel observations, Craftax builds its textures, which takes a minute, and caches them in its own
directory.
"""

import contextlib
import dataclasses
import functools
import io
import numbers
from typing import Any

import jax
import jax.numpy as jnp

from haepo_jax.envs.base import Array, Box, Discrete, PyTree, strongly_typed
from haepo_jax.envs.kwargs import check_settings
from haepo_jax.envs.libraries import LibraryEnvironment, check_horizon, library_errors, load


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class CraftaxEnv(LibraryEnvironment):
    """A Craftax task. Its leaves are Craftax's `EnvParams`, and its state is Craftax's."""

    def _reset(self, key: Array) -> tuple[PyTree, PyTree]:
        observation, state = self.inner.reset_env(key, self.params)
        return state, observation

    def _step(self, key: Array, state: Any, action: Array) -> tuple[PyTree, PyTree, Any, Any, Any]:
        observation, new, reward, _, _ = self.inner.step_env(key, state, action, self.params)
        # Separate the time limit from death and victory.
        terminated = self.inner.is_terminal(new, self.params.replace(max_timesteps=jnp.iinfo(jnp.int32).max))
        truncated = new.timestep >= jnp.minimum(self.params.max_timesteps, self.horizon)
        return new, observation, reward, terminated, truncated


def make_craftax(task: str, **kwargs: Any) -> CraftaxEnv:
    """Creates the Craftax task `task` (`Craftax-Symbolic-v1`, not `craftax/Craftax-Symbolic-v1`).

    Args:
        task: one of the tasks in `list_envs`.
        **kwargs: fields of Craftax's `EnvParams`: `max_timesteps`, the horizon, which should be much shorter than the
            default 10,000 or 100,000 for algorithms on complete episodes; `day_length`, `god_mode`, ...

    Raises:
        ValueError: an unknown setting, or an invalid value.
        TypeError: a setting of the wrong type.
        ImportError: Craftax is not installed.
    """
    name = f"craftax/{task}"
    library = load(name, "Craftax", "craftax.craftax_env")
    inner = _build(library, task)
    defaults = inner.default_params
    check_settings(name, kwargs, vars(defaults))
    with library_errors(name, kwargs):
        return adapt_craftax(name, inner, defaults.replace(**kwargs))


@functools.cache
def _build(library: Any, task: str) -> Any:
    """Craftax's environment object, cached because JAX's caches compare it by identity."""
    with contextlib.redirect_stdout(io.StringIO()):
        return library.make_craftax_env_from_name(task, auto_reset=False)


def adapt_craftax(name: str, inner: Any, params: Any = None) -> CraftaxEnv:
    """Adapts an environment object of Craftax, with its params or the default ones; any auto-reset is bypassed."""
    params = inner.default_params if params is None else params
    horizon = check_horizon(name, "max_timesteps", params.max_timesteps)
    # Numbers as arrays: Python numbers could not be batched.
    numeric = {key: value for key, value in vars(params).items() if isinstance(value, numbers.Real)}
    params = params.replace(**strongly_typed(numeric))
    space = inner.observation_space(params)
    seen = Box(float(space.low), float(space.high), space.shape, jnp.float32)
    return CraftaxEnv(params, inner, name, horizon, seen, Discrete(int(inner.action_space(params).n)))
