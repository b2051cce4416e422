"""`jax.lax.scan` that stores its small outputs in one array: an accelerator launches a kernel to store each array."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

PACK_UP_TO = 2**18
"""The largest number of steps, over all environments, of a packed scan: unpacking copies its outputs, and larger ones keep
each kernel busy."""
PACKED_SIZE = 16
"""The largest size per environment of an array that is packed with others."""


def packed_scan(
    step: Callable[[Any, Any], tuple[Any, Any]], state: Any, inputs: jax.Array, num_envs: int
) -> tuple[Any, Any]:
    """`jax.lax.scan(step, state, inputs)` for outputs with leading axis B = `num_envs`; see `PACK_UP_TO`."""
    if len(inputs) * num_envs > PACK_UP_TO:
        return jax.lax.scan(step, state, inputs)

    def packed_step(state: Any, x: Any) -> tuple[Any, _Packed]:
        state, output = step(state, x)
        return state, _pack(output)

    state, packed = jax.lax.scan(packed_step, state, inputs)
    return state, _unpack(packed)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Packed:
    """A pytree of arrays (B, *shape) whose small leaves are packed into one array.

    Attributes:
      words: (n, B) uint32, the 32-bit values of the small leaves, and a row whose bits are the flags (B,).
      rest: the other leaves.
      like: how to reassemble the tree.
    """

    words: jax.Array
    rest: list[jax.Array]
    like: Any = dataclasses.field(metadata={"static": True})


def _pack(tree: Any) -> _Packed:
    leaves, structure = jax.tree.flatten(tree)
    rows: list[jax.Array] = []
    flags: list[jax.Array] = []
    rest: list[jax.Array] = []
    kinds: list[tuple[str, Any]] = []
    for x in leaves:
        if x.dtype == bool and x.ndim == 1 and len(flags) < 32:
            kinds.append(("flag", len(flags)))
            flags.append(x)
        elif x.dtype in (jnp.float32, jnp.int32, jnp.uint32) and math.prod(x.shape[1:]) <= PACKED_SIZE:
            words = jax.lax.bitcast_convert_type(x, jnp.uint32).reshape(x.shape[0], -1).T
            kinds.append(("words", (len(rows), x.shape[1:], x.dtype)))
            rows.extend(words)
        else:
            kinds.append(("rest", len(rest)))
            rest.append(x)
    bits = [flag.astype(jnp.uint32) << position for position, flag in enumerate(flags)]
    rows.append(functools.reduce(jnp.bitwise_or, bits, jnp.zeros(leaves[0].shape[:1], jnp.uint32)))
    return _Packed(jnp.stack(rows), rest, (structure, tuple(kinds)))


def _unpack(packed: _Packed) -> Any:
    """The original tree with leaves (T, B, *shape)."""
    structure, kinds = packed.like
    words = packed.words

    def leaf(kind: str, found: Any) -> jax.Array:
        if kind == "rest":
            return packed.rest[found]
        if kind == "flag":
            return (words[:, -1] >> found) & 1 == 1
        first, shape, dtype = found
        rows = jnp.moveaxis(words[:, first : first + math.prod(shape)], 1, -1)
        return jax.lax.bitcast_convert_type(rows, dtype).reshape(*rows.shape[:2], *shape)

    return jax.tree.unflatten(structure, [leaf(*kind) for kind in kinds])
