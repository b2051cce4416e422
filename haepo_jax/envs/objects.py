"""Environments from objects: those of other libraries are adapted, those that follow the protocol are used directly.

If an object exists, its library has been imported; so nothing needs to be imported here to recognise it.
"""

import dataclasses
import importlib
import inspect
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from haepo_jax.envs.base import (
    Array,
    Environment,
    PyTree,
    Replaceable,
    TimeStep,
    check_environment,
    check_members,
    finish_step,
    static_field,
    strongly_typed,
)
from haepo_jax.envs.kwargs import check_settings
from haepo_jax.envs.libraries import in_32_bits, usual_promotion, x64_enabled
from haepo_jax.messages import short

# Adapter name, and the base class of the environments that it adapts.
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

# Parts of the names of wrappers that do what the rollout already does.
_DONE_BY_THE_ROLLOUT = ("Vmap", "AutoReset", "Episode", "Eval")

# Wrappers of gymnax, which are no environments of it, and why they are not needed.
_OF_GYMNAX = {
    "FlattenObservationWrapper": "the networks flatten observations",
    "LogWrapper": "the rollout keeps the returns and lengths of episodes",
}


def from_object(obj: Any, **settings: Any) -> Environment:
    """Creates an environment from an object of a known library, or from one that follows the protocol.

    Library objects are adapted, alone or as a pair `(env, params)`. A registered pytree that follows the protocol is
    returned unchanged, any other object that follows it as a `PlainEnvironment`.

    Args:
        obj: an environment of gymnax, Craftax or XLand-MiniGrid, with or without its params, of Brax, Playground,
            Jumanji or Pgx; or an object with the members of `Environment`.
        **settings: keyword arguments of the library's `adapt_...` function in `haepo_jax.envs`.

    Raises:
        ValueError: an unknown setting, a horizon below 1, or an unsupported environment.
        TypeError: a member is missing, or the result of reset or step does not follow the protocol; a setting has the
            wrong type; params are given to a library without them; or a wrapper vectorises, resets or ends episodes.
    """
    adapted = _adapt(obj, **settings)
    if adapted is not None:
        return adapted
    if settings:
        raise ValueError(f"{type(obj).__name__} takes no settings, got {short(settings)}")
    wrapper = type(obj[0] if type(obj) is tuple and obj else obj).__name__
    if wrapper in _OF_GYMNAX:
        raise TypeError(f"remove {wrapper}: {_OF_GYMNAX[wrapper]}")
    check_members(obj)
    env = PlainEnvironment(_ByIdentity(obj)) if jax.tree_util.all_leaves([obj]) else obj
    check_environment(env)
    return env


class _ByIdentity:
    """Holds any object as static metadata; hashes and compares by the identity of the object."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and other.value is self.value


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class PlainEnvironment(Replaceable):
    """A plain object that follows the protocol, wrapped as a pytree without leaves; its attributes are constants.

    Rewards are cast to float32, flags to bool, state leaves to the dtypes before the step, and under
    `jax_enable_x64` observations to the precision declared by their space.
    """

    holder: _ByIdentity = static_field()

    @property
    def name(self) -> str:
        return self.holder.value.name

    @property
    def horizon(self) -> int:
        return self.holder.value.horizon

    @property
    def observation_space(self) -> Any:
        return self.holder.value.observation_space

    @property
    def action_space(self) -> Any:
        return self.holder.value.action_space

    def reset(self, key: Array) -> tuple[PyTree, PyTree]:
        state, observation = self.holder.value.reset(key)
        return strongly_typed(state), self._as_declared(observation)

    def step(self, key: Array, state: PyTree, action: Array) -> TimeStep:
        result = self.holder.value.step(key, state, action)
        if not isinstance(result, tuple) or len(result) != len(TimeStep._fields):
            raise TypeError(f"{self.name}: step must return a TimeStep({', '.join(TimeStep._fields)})")
        after = finish_step(self.name, state, *result)
        return after._replace(observation=self._as_declared(after.observation))

    def _as_declared(self, observation: PyTree) -> PyTree:
        """Casts observations to the declared precision: under `jax_enable_x64` arrays have 64 bits by default."""
        leaves, structure = jax.tree.flatten(strongly_typed(observation))
        spaces = jax.tree.leaves(self.observation_space)
        if not x64_enabled() or len(spaces) != len(leaves):
            return jax.tree.unflatten(structure, leaves)
        cast = [
            x.astype(space.dtype) if hasattr(space, "dtype") and _same_kind(x.dtype, space.dtype) else x
            for space, x in zip(spaces, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, cast)

    def __getattr__(self, name: str) -> Any:
        # Called only for names not defined above: an optional action_mask, and further attributes of the object.
        if name.startswith("__") or name == "holder":
            raise AttributeError(name)
        return getattr(self.holder.value, name)


def _same_kind(one: Any, other: Any) -> bool:
    return any(jnp.issubdtype(one, kind) and jnp.issubdtype(other, kind) for kind in (np.floating, np.integer))


def _adapt(obj: Any, **settings: Any) -> Any:
    """Adapts an object of a known library; None for anything else."""
    inner, *params = obj if type(obj) is tuple and len(obj) == 2 else (obj,)
    for library, module, base in _CLASSES:
        if module not in sys.modules or not isinstance(inner, getattr(sys.modules[module], base)):
            continue
        name = inner.name if library == "gymnax" else f"{library}/{type(inner).__name__}"
        _check_object(name, inner)
        adapter = getattr(importlib.import_module(f"haepo_jax.envs.{library}"), f"adapt_{library}")
        arguments = inspect.signature(adapter).parameters
        if params and "params" not in arguments:
            raise TypeError(f"{name} has no params; pass the environment alone")
        if settings and "params" in arguments:
            raise ValueError(
                f"{name} is an object: pass its params beside it, (env, params.replace({next(iter(settings))}=...))"
            )
        # The adapters check the values themselves, since some may have several types.
        check_settings(name, settings, {key: None for key, x in arguments.items() if x.kind is x.KEYWORD_ONLY})
        with in_32_bits(), usual_promotion():
            return adapter(name, inner, *params, **settings)
    return None


def _check_object(name: str, inner: Any) -> None:
    try:
        hash(inner)
    except TypeError:
        raise TypeError(f"{name} must be hashable") from None
    while inner is not None:
        wrapper = type(inner).__name__
        if wrapper.endswith("Wrapper") and any(word in wrapper for word in _DONE_BY_THE_ROLLOUT):
            raise TypeError(f"{name}: remove {wrapper}; the rollout itself vectorises, resets and truncates episodes")
        inner = vars(inner).get("env", vars(inner).get("_env")) if hasattr(inner, "__dict__") else None
