"""MuJoCo Playground tasks under the environment protocol (optional: `pip install 'haepo_jax[playground]'`).

Zakka et al., "MuJoCo Playground" (arXiv 2502.08844). The DeepMind Control Suite tasks need nothing else; the robots of
the locomotion and manipulation suites download their models when they are first built.
"""

import functools
from typing import Any

from haepo_jax.envs.libraries import building, load
from haepo_jax.envs.physics import PhysicsEnv, make_physics, quiet
from haepo_jax.envs.settings import check_settings, freeze


def make_playground(task: str, **kwargs: Any) -> PhysicsEnv:
    """Build the Playground task `task` (`CartpoleBalance`, not `playground/CartpoleBalance`).

    Args:
        task: of those that `list_envs` names.
        **kwargs: entries of the task's config: `episode_length`, `ctrl_dt`, `impl`, ... The physics runs in JAX
            (`impl="jax"`) unless `impl="warp"` is asked for, because only that nests under any number of vmaps on
            every device.

    Raises:
        ValueError: an unknown setting, or a value that the task refuses.
        TypeError: a setting of the wrong type.
        ImportError: Playground is not installed.
    """
    name = f"playground/{task}"
    load(name, "MuJoCo Playground", "mujoco")  # which `quiet` needs
    with quiet():
        registry = load(name, "MuJoCo Playground", "mujoco_playground").registry
    config = registry.get_default_config(task)
    check_settings(name, kwargs, config)
    if "impl" in config:
        kwargs = {"impl": "jax", **kwargs}
    with building(name, kwargs):
        inner = _build(task, tuple(sorted((key, freeze(value)) for key, value in kwargs.items())))
        episode_length = kwargs.get("episode_length", config.episode_length)
        return adapt_playground(name, inner, episode_length=episode_length)


def adapt_playground(name: str, inner: Any, *, episode_length: int = 1000) -> PhysicsEnv:
    """An object of Playground's `MjxEnv` class as it is; `episode_length` is its time limit."""
    return make_physics(name, inner, "_mjx_model" if hasattr(inner, "_mjx_model") else "", episode_length)


@functools.cache
def _build(task: str, arguments: tuple[tuple[str, Any], ...]) -> Any:
    """Playground's environment object, the same one for the same arguments: JAX's caches know it by identity."""
    with quiet():
        registry = load(f"playground/{task}", "MuJoCo Playground", "mujoco_playground").registry
        return registry.load(task, config_overrides=dict(arguments))
