"""Environment objects of other libraries, taken as they are.

An object can only exist where its library has been imported, so nothing is imported here to recognise one.
"""

import importlib
import inspect
import sys
from typing import Any

from haepo_jax.envs.settings import check_settings

# Our adapter's name, and the class of the environments that it takes.
_CLASSES: tuple[tuple[str, str, str], ...] = (
    ("gymnax", "gymnax.environments.environment", "Environment"),
    ("craftax", "craftax.environment_base.environment_bases", "EnvironmentNoAutoReset"),
    ("craftax", "craftax.environment_base.environment_bases", "EnvironmentAutoReset"),
    ("xminigrid", "xminigrid.environment", "Environment"),
    ("brax", "brax.envs.base", "Env"),
    ("playground", "mujoco_playground._src.mjx_env", "MjxEnv"),
    ("jumanji", "jumanji.env", "Environment"),
    ("pgx", "pgx.core", "Env"),
)

# Of wrappers' names: what the rollout does for every environment must not be done twice.
_DONE_BY_THE_ROLLOUT = ("Vmap", "AutoReset", "Episode", "Eval")


def adapt(obj: Any, **settings: Any) -> Any:
    """The `Environment` that an object of another library is, or a pair `(env, params)`; None for anything else.

    Args:
        obj: of gymnax, Craftax or XLand-MiniGrid, with or without its params, of Brax, Playground, Jumanji or Pgx.
        **settings: the keyword arguments of the library's `adapt_...` in `haepo_jax.envs`.

    Raises:
        ValueError: an unknown setting, or an environment without a counterpart here.
        TypeError: a setting of the wrong type, params where the library has none, or a wrapper that vectorises, resets
            or ends episodes.
    """
    inner, *params = obj if type(obj) is tuple and len(obj) == 2 else (obj,)
    for library, module, base in _CLASSES:
        if module not in sys.modules or not isinstance(inner, getattr(sys.modules[module], base)):
            continue
        name = inner.name if library == "gymnax" else f"{library}/{type(inner).__name__}"
        _check_object(name, inner)
        adapter = getattr(importlib.import_module(f"haepo_jax.envs.{library}"), f"adapt_{library}")
        arguments = inspect.signature(adapter).parameters
        if params and "params" not in arguments:
            raise TypeError(f"{name} has no params: pass the environment by itself")
        # The adapters look at the values themselves: some may be of several types.
        check_settings(name, settings, {key: None for key, x in arguments.items() if x.kind is x.KEYWORD_ONLY})
        return adapter(name, inner, *params, **settings)
    return None


def _check_object(name: str, inner: Any) -> None:
    try:
        hash(inner)
    except TypeError:
        raise TypeError(f"{name} cannot be hashed, which an object that is compiled in must be") from None
    while inner is not None:
        wrapper = type(inner).__name__
        if wrapper.endswith("Wrapper") and any(word in wrapper for word in _DONE_BY_THE_ROLLOUT):
            raise TypeError(f"{name}: leave out {wrapper}: the rollout vectorises, resets and ends episodes by itself")
        inner = vars(inner).get("env", vars(inner).get("_env")) if hasattr(inner, "__dict__") else None
