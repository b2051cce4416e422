"""Environment objects: those of other libraries, which are adapted, and those that follow the protocol themselves.

An object can only exist where its library has been imported, so nothing is imported here to recognise one.
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
    finish_step,
    static_field,
    strongly_typed,
)
from haepo_jax.envs.libraries import in_32_bits, usual_promotion, x64_enabled
from haepo_jax.envs.settings import check_settings
from haepo_jax.messages import short

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


def from_object(obj: Any, **settings: Any) -> Environment:
    """An environment from an object of a known library, or from one that follows the protocol.

    A registered pytree is returned as it is, any other object that follows the protocol as a `PlainEnvironment`, and one of
    another library is adapted, alone or as a pair `(env, params)`.

    Args:
        obj: of gymnax, Craftax or XLand-MiniGrid, with or without its params, of Brax, Playground, Jumanji or Pgx; or one
            with the members of `Environment`.
        **settings: the keyword arguments of the library's `adapt_...` in `haepo_jax.envs`.

    Raises:
        ValueError: an unknown setting, a horizon below 1, or an environment without a counterpart here.
        TypeError: a member is missing, or what reset or step returns does not fit the protocol; a setting of the wrong
            type, params where the library has none, or a wrapper that vectorises, resets or ends episodes.
    """
    adapted = _adapt(obj, **settings)
    if adapted is not None:
        return adapted
    if settings:
        raise ValueError(f"{type(obj).__name__} takes no settings here: it has its own, and {short(settings)} came too")
    members = ("name", "horizon", "observation_space", "action_space", "reset", "step")
    missing = [member for member in members if not hasattr(obj, member)]
    if missing:
        raise TypeError(f"{type(obj).__name__} is no environment: it has no {', '.join(missing)}")
    if isinstance(obj, type):
        raise TypeError(f"{obj.__name__} is a class: pass an instance")
    env = PlainEnvironment(_ByIdentity(obj)) if jax.tree_util.all_leaves([obj]) else obj
    check_environment(env)
    return env


class _ByIdentity:
    """Holds any object as static metadata: hashable whatever it is, and equal only to a holder of the same object."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and other.value is self.value


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class PlainEnvironment(Replaceable):
    """A user's ordinary object that follows the protocol, made a pytree without leaves; its numbers stay constants.

    Rewards are cast to float32, flags to bool, state leaves to the dtypes they had before the step, and observations to the
    precision that their space declares.
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
        """Under `jax_enable_x64` numbers made without a dtype have 64 bits, which no space means unless it says so."""
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
        # Reached only for what is not defined above: action_mask, if the object has one, and its own extras.
        if name.startswith("__") or name == "holder":
            raise AttributeError(name)
        return getattr(self.holder.value, name)


def _same_kind(one: Any, other: Any) -> bool:
    return any(jnp.issubdtype(one, kind) and jnp.issubdtype(other, kind) for kind in (np.floating, np.integer))


def _adapt(obj: Any, **settings: Any) -> Any:
    """The environment that an object of a known library is; None for anything else."""
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
        with in_32_bits(), usual_promotion():
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
