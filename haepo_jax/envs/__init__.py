"""Environments: one small protocol (`haepo_jax.envs.base`), tasks that come with the package, adapters for gymnax and
Brax and, where they are installed, MuJoCo Playground, Jumanji, Craftax, Pgx and XLand-MiniGrid.

Importing this package imports neither jax nor any environment library.
"""

import importlib
from typing import TYPE_CHECKING, Any

from haepo_jax.envs.names import LIBRARIES, list_envs, resolve_name

if TYPE_CHECKING:
    from haepo_jax.envs.base import (
        Box,
        Discrete,
        Environment,
        Space,
        TimeStep,
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
    "check_environment",
    "has_action_mask",
    "list_envs",
    "make_env",
    "resolve_name",
]

_IN_BASE = frozenset(__all__) - {"TokenTask", "list_envs", "make_env", "resolve_name"}


# Prefix -> the adapter and its function.
_MAKERS: dict[str, tuple[str, str]] = {
    "haepo": ("haepo_jax.envs.tasks", "make_task"),
    **{name: (f"haepo_jax.envs.{name}", f"make_{name}") for name in LIBRARIES},
}


def make_env(env: Any, **kwargs: Any) -> "Environment":
    """An environment by name, or from an object of an environment library or of one's own.

    Args:
        env: one of `list_envs()`, for instance `CartPole-v1` (or `gymnax/CartPole-v1`), `brax/ant`, `haepo/random_walk`,
            `jumanji/Snake-v1`; or an environment object of gymnax, Craftax or XLand-MiniGrid, alone or with its params
            as `(env, params)`, of Brax, Playground, Jumanji or Pgx; or one that follows the protocol.
        **kwargs: the environment's settings. gymnax, Craftax and XLand-MiniGrid: fields of their `EnvParams`, and
            gymnax's constructor arguments; Brax: `backend`, `episode_length` and the constructor's arguments;
            Playground: entries of its config; Jumanji: the constructor's arguments and `episode_length`; Pgx: `opponent`
            and `episode_length`; the package's own tasks: see `haepo_jax.envs.tasks`. Of these an object takes `episode_length` and
            `opponent` only: it has all others.

    Returns:
        An environment whose static part is equal, and hashes equal, for equal arguments: jitted code compiles once.

    Raises:
        ValueError: unknown name or setting (near matches are named), or a value that the environment refuses.
        TypeError: a setting of the wrong type, or an object that is no environment.
        ImportError: the library behind the name is not installed.
    """
    from haepo_jax.envs.libraries import in_32_bits, usual_promotion
    from haepo_jax.envs.objects import from_object

    if not isinstance(env, str):
        return from_object(env, **kwargs)
    canonical = resolve_name(env)
    library, _, task = canonical.partition("/")
    if library not in _MAKERS:
        library, task = "gymnax", canonical
    module, function = _MAKERS[library]
    with in_32_bits(), usual_promotion():
        return getattr(importlib.import_module(module), function)(task, **kwargs)


def __getattr__(name: str) -> Any:
    if name in _IN_BASE:
        return getattr(importlib.import_module("haepo_jax.envs.base"), name)
    if name == "TokenTask":
        return importlib.import_module("haepo_jax.envs.tokens").TokenTask
    if name == "as_environment":
        raise AttributeError("as_environment is now make_env, which takes names and objects")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
