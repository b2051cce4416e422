"""Environments: one small protocol (`haepo_jax.envs.base`), adapters for gymnax, Brax and MuJoCo Playground, own tasks.

Importing this package imports neither jax nor any environment library.
"""

import importlib
from typing import TYPE_CHECKING, Any

from haepo_jax.envs.names import list_envs, resolve_name

if TYPE_CHECKING:
    from haepo_jax.envs.base import (
        Box,
        Discrete,
        Environment,
        Space,
        TimeStep,
        as_environment,
        check_environment,
        has_action_mask,
    )
    from haepo_jax.envs.tokens import TokenTask

__all__ = [
    "Box",
    "Discrete",
    "Environment",
    "Space",
    "TimeStep",
    "TokenTask",
    "as_environment",
    "check_environment",
    "has_action_mask",
    "list_envs",
    "make_env",
    "resolve_name",
]

_IN_BASE = frozenset(__all__) - {"TokenTask", "list_envs", "make_env", "resolve_name"}


def make_env(name: str, **kwargs: Any) -> "Environment":
    """Build an environment by name.

    Args:
        name: one of `list_envs()`, for instance `CartPole-v1` (or `gymnax/CartPole-v1`), `brax/ant`,
            `haepo/random_walk`.
        **kwargs: the environment's settings. gymnax: constructor arguments and fields of its `EnvParams`; Brax:
            `backend`, `episode_length` and the constructor's arguments; Playground: entries of its config; own tasks:
            see `haepo_jax.envs.tasks`.

    Returns:
        An environment whose static part is equal, and hashes equal, for equal arguments: jitted code compiles once.

    Raises:
        ValueError: unknown name or setting (near matches are named), or a value that the environment refuses.
        TypeError: a setting of the wrong type.
        ImportError: the library behind the name is not installed.
    """
    canonical = resolve_name(name)
    library, _, task = canonical.rpartition("/")
    if library == "brax":
        from haepo_jax.envs.brax import make_brax

        return make_brax(task, **kwargs)
    if library == "playground":
        from haepo_jax.envs.playground import make_playground

        return make_playground(task, **kwargs)
    if library == "haepo":
        from haepo_jax.envs.tasks import make_task

        return make_task(task, **kwargs)
    from haepo_jax.envs.gymnax import make_gymnax

    return make_gymnax(canonical, **kwargs)


def __getattr__(name: str) -> Any:
    if name in _IN_BASE:
        return getattr(importlib.import_module("haepo_jax.envs.base"), name)
    if name == "TokenTask":
        return importlib.import_module("haepo_jax.envs.tokens").TokenTask
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
