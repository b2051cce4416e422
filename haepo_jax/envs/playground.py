"""MuJoCo Playground tasks under the environment protocol (optional: `pip install 'haepo_jax[playground]'`).

Zakka et al., "MuJoCo Playground" (arXiv 2502.08844). The DeepMind Control Suite tasks need nothing else; the robots of
the locomotion and manipulation suites download their models when they are first built.
"""

import functools
import importlib
from typing import Any

from haepo_jax.envs._physics import PhysicsEnv, make_physics, quiet
from haepo_jax.envs._settings import check_settings, freeze
from haepo_jax.messages import short


def make_playground(task: str, **kwargs: Any) -> PhysicsEnv:
    """Build the Playground task `task` (`CartpoleBalance`, not `playground/CartpoleBalance`).

    Args:
        task: one of `names.PLAYGROUND`.
        **kwargs: entries of the task's config: `episode_length`, `ctrl_dt`, `impl`, ... The physics runs in JAX
            (`impl="jax"`) unless `impl="warp"` is asked for, because only that nests under any number of vmaps on
            every device.

    Raises:
        ValueError: an unknown setting, or a value that the task refuses.
        TypeError: a setting of the wrong type.
        ImportError: Playground is not installed.
    """
    name = f"playground/{task}"
    try:
        with quiet():
            registry: Any = importlib.import_module("mujoco_playground").registry
    except ModuleNotFoundError as error:
        message = (
            f"{name} needs MuJoCo Playground, and {error.name} is not installed: pip install 'haepo_jax[playground]'"
        )
        raise ImportError(message) from error
    config = registry.get_default_config(task)
    check_settings(name, kwargs, config)
    if "impl" in config:
        kwargs = {"impl": "jax", **kwargs}
    try:
        inner = _build(task, tuple(sorted((key, freeze(value)) for key, value in kwargs.items())))
        episode_length = kwargs.get("episode_length", config.episode_length)
        return make_physics(name, inner, "_mjx_model" if hasattr(inner, "_mjx_model") else "", episode_length)
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{name} cannot be built with {short(kwargs)}: {reason}") from error


@functools.cache
def _build(task: str, arguments: tuple[tuple[str, Any], ...]) -> Any:
    """Playground's environment object, the same one for the same arguments: JAX's caches know it by identity."""
    with quiet():
        registry: Any = importlib.import_module("mujoco_playground").registry
        return registry.load(task, config_overrides=dict(arguments))
