"""The environment protocol, the only interface between environments and the rest of the library.

Every function is for one environment; the library vmaps. Environments do not auto-reset.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, Self, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from haepo_jax.messages import short
from haepo_jax.spaces import Box, Discrete, MultiDiscrete, Space, map_space

Array: TypeAlias = jax.Array
PyTree: TypeAlias = Any


class TimeStep(NamedTuple):
    """The result of a step. `terminated`: the task ended; `truncated`: a time limit cut the episode off; never both."""

    state: PyTree
    observation: PyTree
    reward: Array  # float32 ()
    terminated: Array  # bool ()
    truncated: Array  # bool ()


class Environment(Protocol):
    """The environment protocol.

    Optional: `action_mask(state)`, the valid actions: bool (n,) for `Discrete(n)`; for `MultiDiscrete` the concatenated
    masks of all its integers, (sum(sizes),); for dicts and tuples one mask per part, None for a `Box`. Where none is valid,
    action 0 is taken.
    """

    @property
    def name(self) -> str: ...

    @property
    def horizon(self) -> int:
        """The maximum episode length in steps: the rollout truncates longer episodes, in training and in evaluation."""
        ...

    @property
    def observation_space(self) -> Space:
        """A `Discrete`, a `MultiDiscrete`, a `Box`, or a nested dict or tuple of them."""
        ...

    @property
    def action_space(self) -> Space:
        """Like `observation_space`."""
        ...

    def reset(self, key: Array) -> tuple[PyTree, PyTree]:
        """Starts an episode; returns (state, observation)."""
        ...

    def step(self, key: Array, state: PyTree, action: Array) -> TimeStep:
        """One step with an action in the units of the environment. The state keeps its structure, shapes and dtypes."""
        ...


class Replaceable:
    """Adds a `replace` method to a frozen dataclass."""

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed. `env.replace(params=...)` may carry traced or batched parameters."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]


def static_field(**kwargs: Any) -> Any:
    """A dataclass field that is static metadata of the pytree, not a leaf."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


def has_action_mask(env: Environment) -> bool:
    """Whether the environment provides a mask of valid actions. Raises TypeError for one that is no method."""
    mask = getattr(env, "action_mask", None)
    if mask is not None and not callable(mask):
        raise TypeError(f"{env.name}: action_mask must be a method, action_mask(state)")
    return mask is not None


def check_members(env: object) -> None:
    """Raises TypeError for an object that lacks a member of `Environment`, and for a class."""
    members = ("name", "horizon", "observation_space", "action_space", "reset", "step")
    missing = [member for member in members if not hasattr(env, member)]
    if missing:
        raise TypeError(f"{type(env).__name__} is not an environment: it has no {', '.join(missing)}")
    if isinstance(env, type):
        raise TypeError(f"{env.__name__} is a class; pass an instance")


def check_environment(env: Environment) -> None:
    """Checks an environment against the protocol by tracing one reset and one step; nothing is computed.

    Raises:
        TypeError: a member is missing, or a space, observation, state, reward, flag or mask does not follow the protocol;
            in one line.
        ValueError: a horizon below 1.
    """
    check_members(env)
    name = env.name
    for path, value in jax.tree_util.tree_leaves_with_path(env):
        if not isinstance(value, bool | int | float | np.ndarray | np.generic | jax.Array):
            raise TypeError(f"{name}: {_field(path)} is no number, so it must be a static field of the environment")
    if _is_traced(env, "horizon"):
        raise TypeError(
            f"{name}: horizon must depend on static fields of the environment only, which JAX does not trace"
        )
    if isinstance(env.horizon, bool) or not isinstance(env.horizon, int | np.integer):
        raise TypeError(f"{name}: horizon must be an integer, got {env.horizon!r}")
    if env.horizon < 1:
        raise ValueError(f"{name}: horizon must be at least 1, got {env.horizon}")
    _check_space(f"{name}: action_space", env.action_space)
    if not _is_plainly_nested(env.action_space):
        raise TypeError(f"{name}: action_space may nest dicts and tuples only, got {short(env.action_space)}")
    for part in jax.tree.leaves(env.action_space):
        if isinstance(part, Box) and not np.issubdtype(part.dtype, np.floating):
            raise TypeError(
                f"{name}: action_space has a Box of {part.dtype}, but the actions of a Box must be floating point; "
                "use Discrete or MultiDiscrete for integers"
            )
    key = jax.eval_shape(lambda: jax.random.key(0))
    start = jax.eval_shape(env.reset, key)
    if not isinstance(start, tuple) or len(start) != 2:
        raise TypeError(f"{name}: reset must return (state, observation)")
    state, observation = start
    action = map_space(lambda part: jax.ShapeDtypeStruct(part.shape, part.dtype), env.action_space)
    result = jax.eval_shape(env.step, key, state, action)
    if not isinstance(result, TimeStep):
        raise TypeError(f"{name}: step must return a TimeStep({', '.join(TimeStep._fields)})")
    _check_observation(f"{name}: the observation of reset", env.observation_space, observation)
    _check_observation(f"{name}: the observation of step", env.observation_space, result.observation)
    _check_same(f"{name}: the state", state, result.state)
    for field, dtype in (("reward", np.float32), ("terminated", np.bool_), ("truncated", np.bool_)):
        value = getattr(result, field)
        if getattr(value, "shape", None) != () or value.dtype != dtype:
            raise TypeError(f"{name}: {field} must be a {np.dtype(dtype).name} scalar, got {_describe(value)}")
    if has_action_mask(env):
        if not any(isinstance(part, Discrete | MultiDiscrete) for part in jax.tree.leaves(env.action_space)):
            raise TypeError(f"{name}: action_mask requires a Discrete or MultiDiscrete action space")
        _check_mask(f"{name}: action_mask", env.action_space, jax.eval_shape(env.action_mask, state))  # type: ignore[attr-defined]


def strongly_typed(tree: PyTree) -> PyTree:
    """The same pytree of arrays without JAX's weak types, which would change the type of a loop carry."""
    return jax.tree.map(lambda leaf: _cast(jnp.asarray(leaf), jnp.asarray(leaf).dtype), tree)


def finish_step(
    name: str, old_state: PyTree, state: PyTree, observation: PyTree, reward: Any, terminated: Any, truncated: Any
) -> TimeStep:
    """A `TimeStep` with the dtypes of the protocol and of `old_state`; termination overrides truncation.

    Raises:
        TypeError: the state changed its structure, a shape, or from integer to float; the reward or a flag is not a
            scalar.
    """
    if not _same_structure(old_state, state):
        raise TypeError(f"{name}: the state's structure differs between reset and step")
    state = jax.tree_util.tree_map_with_path(lambda path, old, new: _cast_like(name, path, old, new), old_state, state)
    for field, value in (("reward", reward), ("terminated", terminated), ("truncated", truncated)):
        if not isinstance(value, bool | int | float | np.generic | np.ndarray | jax.Array):
            raise TypeError(
                f"{name}: step must return a TimeStep, whose {field} is a scalar, got {type(value).__name__}"
            )
    reward, terminated, truncated = jnp.asarray(reward), jnp.asarray(terminated), jnp.asarray(truncated)
    for field, value in (("reward", reward), ("terminated", terminated), ("truncated", truncated)):
        if value.shape != ():
            raise TypeError(f"{name}: {field} must be a scalar, got {_describe(value)}")
    terminated = _cast(terminated, np.bool_)
    truncated = jnp.logical_and(_cast(truncated, np.bool_), jnp.logical_not(terminated))
    return TimeStep(state, strongly_typed(observation), _cast(reward, np.float32), terminated, truncated)


def first_observation(env: Environment) -> PyTree:
    """Shapes and dtypes (`jax.ShapeDtypeStruct`s) of the observation of `reset`; nothing is computed."""
    return jax.eval_shape(env.reset, jax.eval_shape(lambda: jax.random.key(0)))[1]


def space_of(example: PyTree) -> PyTree:
    """Unbounded boxes with the shapes and dtypes of an observation (arrays or `jax.ShapeDtypeStruct`s)."""
    return jax.tree.map(lambda leaf: Box(-np.inf, np.inf, leaf.shape, leaf.dtype), example)


def _cast(leaf: Array, dtype: Any) -> Array:
    # Typed PRNG keys cannot be converted to a numeric dtype.
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.extended) else jax.lax.convert_element_type(leaf, dtype)


def _cast_like(name: str, path: Any, old: Any, new: Any) -> Array:
    old, new = jnp.asarray(old), jnp.asarray(new)
    loses = _rank(new.dtype) > _rank(old.dtype)
    if old.shape != new.shape or loses:
        where = f"the state{jax.tree_util.keystr(path)}"
        raise TypeError(f"{name}: {where} is {_describe(old)} before a step and {_describe(new)} after it")
    return _cast(new, old.dtype)


def _rank(dtype: Any) -> int:
    if jnp.issubdtype(dtype, jnp.bool_):
        return 0
    return 1 if jnp.issubdtype(dtype, jnp.integer) else 2


def _describe(value: Any) -> str:
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        return type(value).__name__
    weak = ", weakly typed" if getattr(value, "weak_type", False) else ""
    return f"{value.dtype} {tuple(value.shape)}{weak}"


def _is_traced(env: Any, name: str) -> bool:
    """Whether an attribute depends on the arrays of an environment."""
    found: list[Any] = []
    try:
        jax.eval_shape(lambda traced: found.append(getattr(traced, name)), env)
    except jax.errors.JAXTypeError:  # it is made a Python number
        return True
    return isinstance(found[0], jax.core.Tracer)


def _field(path: Any) -> str:
    return jax.tree_util.keystr(path).lstrip(".")


def _describe_tree(tree: Any) -> str:
    return str(jax.tree.map(_describe, tree)).replace("'", "")


def _check_space(what: str, space: Any) -> None:
    spaces = jax.tree.leaves(space)
    if not spaces or not all(isinstance(part, Discrete | MultiDiscrete | Box) for part in spaces):
        raise TypeError(f"{what} must consist of Discrete, MultiDiscrete and Box, got {short(space)}")


def _is_plainly_nested(space: Any) -> bool:
    if isinstance(space, Mapping):
        return all(map(_is_plainly_nested, space.values()))
    return not isinstance(space, list | tuple) or (type(space) is tuple and all(map(_is_plainly_nested, space)))


def _check_mask(what: str, space: Any, mask: Any) -> None:
    def wanted(part: Any) -> Any:
        if isinstance(part, Box):
            return None
        return jax.ShapeDtypeStruct((part.n if isinstance(part, Discrete) else sum(part.sizes),), np.dtype(np.bool_))

    expected = map_space(wanted, space)
    if not _same_structure(expected, mask) or [*map(_describe, jax.tree.leaves(expected))] != [
        *map(_describe, jax.tree.leaves(mask))
    ]:
        raise TypeError(f"{what} must be {_describe_tree(expected)}, got {_describe_tree(mask)}")


def _check_observation(what: str, space: Any, observation: PyTree) -> None:
    _check_space(f"{what}: observation_space", space)
    spaces = jax.tree.leaves(space)
    if not _same_structure(space, observation):
        structures = f"{jax.tree.structure(observation)} and {jax.tree.structure(space)}"
        raise TypeError(f"{what} has a different structure than observation_space: {structures}")
    for leaf_space, leaf in zip(spaces, jax.tree.leaves(observation), strict=True):
        fits = (
            jnp.issubdtype(leaf.dtype, jnp.integer)
            if isinstance(leaf_space, Discrete)
            else leaf.dtype == leaf_space.dtype
        )
        if leaf.shape != leaf_space.shape or not fits:
            raise TypeError(f"{what} is {_describe(leaf)}, but its space is {leaf_space}")


def _same_structure(one: PyTree, other: PyTree) -> bool:
    structures: list[Any] = [jax.tree.structure(one), jax.tree.structure(other)]
    return bool(structures[0] == structures[1])


def _check_same(what: str, before: PyTree, after: PyTree) -> None:
    if not _same_structure(before, after):
        raise TypeError(f"{what} has a different structure after step than after reset")
    leaves = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    for (path, old), new in leaves:
        if _describe(old) != _describe(new):
            where = f"{what}{jax.tree_util.keystr(path)}"
            raise TypeError(f"{where} is {_describe(old)} after reset and {_describe(new)} after step")
