"""Brax tasks under the environment protocol.

Freeman et al., "Brax - A Differentiable Physics Engine for Large Scale Rigid Body Simulation" (2021). These tasks are
no longer maintained upstream; their successor is MuJoCo Playground (`haepo_jax.envs.playground`).
"""

import functools
import inspect
from typing import Any

import jax.numpy as jnp

from haepo_jax.envs.kwargs import check_settings, constructor_settings, freeze
from haepo_jax.envs.libraries import library_errors, load
from haepo_jax.envs.physics import PhysicsEnv, make_physics, quiet

BACKENDS = ("generalized", "spring", "positional", "mjx")


def make_brax(task: str, *, episode_length: int = 1000, **kwargs: Any) -> PhysicsEnv:
    """Creates the Brax task `task` (`ant`, not `brax/ant`).

    Args:
        task: one of the tasks in `list_envs`.
        episode_length: the time limit in control steps.
        **kwargs: `backend` (one of `BACKENDS`; Brax's default, `generalized`, supports every task), `n_frames`,
            `debug`, and the constructor arguments of the task.

    Raises:
        ValueError: an unknown setting, or an invalid value (`swimmer` only supports the generalized backend).
        TypeError: a setting of the wrong type.
        ImportError: Brax is not installed.
    """
    name = f"brax/{task}"
    factory = _registry(name)[task]
    settings = {"episode_length": 1000, **constructor_settings(factory.__init__)}
    if "backend" in settings:
        settings |= {"n_frames": None, "debug": False}
    check_settings(name, {"episode_length": episode_length, **kwargs}, settings)
    if kwargs.get("backend", BACKENDS[0]) not in BACKENDS:
        raise ValueError(f"{name}: backend must be one of {', '.join(BACKENDS)}, got {kwargs['backend']!r}")
    arguments = freeze(kwargs)
    with library_errors(name, kwargs):
        return adapt_brax(name, _build(name, task, arguments), episode_length=episode_length)


def adapt_brax(name: str, inner: Any, *, episode_length: int = 1000) -> PhysicsEnv:
    """Adapts an instance of Brax's `Env`; `episode_length` is its time limit, which Brax leaves to a wrapper."""
    return make_physics(name, inner, "sys" if hasattr(inner, "sys") else "", episode_length)


@functools.cache
def _build(name: str, task: str, arguments: tuple[tuple[str, Any], ...]) -> Any:
    """Brax's environment object, cached by its arguments because JAX's caches compare it by identity."""
    registry = _registry(name)
    with quiet():
        return registry[task](**dict(arguments))


@functools.cache
def _registry(name: str) -> dict[str, Any]:
    load(name, "Brax", "mujoco")  # needed by `quiet`
    with quiet():
        envs, fluid = load(name, "Brax", "brax.envs"), load(name, "Brax", "brax.fluid")
    if "a_min" not in inspect.signature(jnp.clip).parameters:
        # The swimmer's fluid forces call jnp.clip with a keyword that newer JAX has removed.
        fluid.jp = _NumpyWithOldClip()
    return envs._envs


class _NumpyWithOldClip:
    """`jax.numpy` with the former keyword `a_min` of `clip`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(jnp, name)

    @staticmethod
    def clip(array: Any, a_min: Any = None, max: Any = None, *, min: Any = None) -> Any:
        return jnp.clip(array, a_min if min is None else min, max)
