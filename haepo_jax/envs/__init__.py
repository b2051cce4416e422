"""Environments: a small protocol (`haepo_jax.envs.base`), built-in tasks, and adapters for gymnax, Brax and, if
installed, MuJoCo Playground, Jumanji, Craftax, Pgx and XLand-MiniGrid.

Importing this package imports neither JAX nor any environment library.
"""

import importlib
from typing import TYPE_CHECKING, Any

from haepo_jax.envs.names import LIBRARIES, list_envs, resolve_name

if TYPE_CHECKING:
    from haepo_jax.envs.base import (
        Box,
        Discrete,
        Environment,
        MultiDiscrete,
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
    "MultiDiscrete",
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


# Prefix -> the adapter's module and function.
_MAKERS: dict[str, tuple[str, str]] = {
    "haepo": ("haepo_jax.envs.tasks", "make_task"),
    **{name: (f"haepo_jax.envs.{name}", f"make_{name}") for name in LIBRARIES},
}


def make_env(env: Any, **kwargs: Any) -> "Environment":
    """Creates an environment by name, or from an environment object of a supported library or a custom one.

    Args:
        env: one of `list_envs()`, for example `CartPole-v1` (or `gymnax/CartPole-v1`), `brax/ant`, `haepo/random_walk`,
            `jumanji/Snake-v1`; or an environment object of gymnax, Craftax or XLand-MiniGrid, alone or with its params
            as `(env, params)`, of Brax, Playground, Jumanji or Pgx; or one that follows the protocol.
        **kwargs: the environment's settings. gymnax, Craftax and XLand-MiniGrid: fields of their `EnvParams`, and for
            gymnax constructor arguments; Brax: `backend`, `episode_length` and constructor arguments; Playground:
            entries of its config; Jumanji: constructor arguments and `episode_length`; Pgx: `opponent` and
            `episode_length`; built-in tasks: see `haepo_jax.envs.tasks`. An object only takes `episode_length` and
            `opponent`: it has its other settings already.

    Returns:
        An environment. Equal arguments give environments whose static parts compare and hash equal, so that jitted code
        is compiled once.

    Raises:
        ValueError: an unknown name or setting (near matches are suggested), or an invalid value.
        TypeError: a setting of the wrong type, or an object that is not an environment.
        ImportError: the library of the environment is not installed.
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
    import jax

    # Its numbers are constants, also where an algorithm is built within a jitted function, as PureJaxRL does.
    with in_32_bits(), usual_promotion(), jax.ensure_compile_time_eval():
        made = getattr(importlib.import_module(module), function)(task, **kwargs)
    object.__setattr__(made, "_make_env_settings", kwargs)  # for the config file of a run; no part of its value
    return made


def __getattr__(name: str) -> Any:
    if name in _IN_BASE:
        return getattr(importlib.import_module("haepo_jax.envs.base"), name)
    if name == "TokenTask":
        return importlib.import_module("haepo_jax.envs.tokens").TokenTask
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
