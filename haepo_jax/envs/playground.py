"""MuJoCo Playground tasks under the environment protocol (optional: `pip install 'haepo_jax[playground]'`).

Zakka et al., "MuJoCo Playground" (arXiv 2502.08844). The robots of the locomotion and manipulation suites download
their models on first use; the DeepMind Control Suite tasks need no download.
"""

import functools
from typing import Any

from haepo_jax.envs.kwargs import check_settings, freeze
from haepo_jax.envs.libraries import library_errors, load
from haepo_jax.envs.physics import PhysicsEnv, make_physics, quiet


def make_playground(task: str, **kwargs: Any) -> PhysicsEnv:
    """Creates the Playground task `task` (`CartpoleBalance`, not `playground/CartpoleBalance`).

    Args:
        task: one of the tasks in `list_envs`.
        **kwargs: entries of the task's config: `episode_length`, `ctrl_dt`, `impl`, ... The default is `impl="jax"`,
            which, unlike `impl="warp"`, supports nested vmaps on every device. Not `action_repeat`, which Playground
            leaves to a wrapper: an action is one control step.

    Raises:
        ValueError: an unknown setting, or an invalid value.
        TypeError: a setting of the wrong type.
        ImportError: Playground is not installed.
    """
    name = f"playground/{task}"
    load(name, "MuJoCo Playground", "mujoco")  # needed by `quiet`
    with quiet():
        registry = load(name, "MuJoCo Playground", "mujoco_playground").registry
    config = registry.get_default_config(task)
    check_settings(name, kwargs, {key: value for key, value in config.items() if key != "action_repeat"})
    if "impl" in config:
        kwargs = {"impl": "jax", **kwargs}
    with library_errors(name, kwargs):
        inner = _build(registry, task, freeze(kwargs))
        episode_length = kwargs.get("episode_length", config.episode_length)
        return adapt_playground(name, inner, episode_length=episode_length)


def adapt_playground(name: str, inner: Any, *, episode_length: int = 1000) -> PhysicsEnv:
    """Adapts an instance of Playground's `MjxEnv`; `episode_length` is its time limit."""
    return make_physics(name, inner, "_mjx_model" if hasattr(inner, "_mjx_model") else "", episode_length)


@functools.cache
def _build(registry: Any, task: str, arguments: tuple[tuple[str, Any], ...]) -> Any:
    """Playground's environment object, cached by its arguments because JAX's caches compare it by identity."""
    with quiet():
        return registry.load(task, config_overrides=dict(arguments))
