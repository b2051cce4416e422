"""Reductions that stay one value for the whole batch under `jax.vmap`.

A `lax.while_loop`, `lax.cond` or `lax.switch` whose predicate is batched computes every branch and selects. Where a
decision is only about how much work to do (is any lane alive? how long is the longest episode?), one answer for all
lanes is right, and keeps the control flow real under any nesting of vmaps.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


@jax.custom_batching.custom_vmap
def any_lane(flags: jax.Array) -> jax.Array:
    """True where any flag, of any lane of any enclosing vmap, is true: (...) bool -> () bool, never batched."""
    return jnp.any(flags)


@any_lane.def_vmap
def _any_lane_vmap(axis_size: int, in_batched: list[bool], flags: jax.Array) -> tuple[jax.Array, Any]:
    del axis_size, in_batched
    return any_lane(flags), False


@jax.custom_batching.custom_vmap
def max_lane(values: jax.Array) -> jax.Array:
    """The largest value in any lane of any enclosing vmap: (...) -> (), never batched."""
    return jnp.max(values)


@max_lane.def_vmap
def _max_lane_vmap(axis_size: int, in_batched: list[bool], values: jax.Array) -> tuple[jax.Array, Any]:
    del axis_size, in_batched
    return max_lane(values), False


@jax.custom_batching.custom_vmap
def hold_finished(unfinished: jax.Array, new: Any, old: Any) -> Any:
    """What the turn of a `while_loop` leaves behind whose predicate is `any_lane(unfinished)`: `new`, and in a lane
    that has finished, which exists under `jax.vmap` alone, `old`; () bool, and two pytrees alike.

    Without lanes a turn is taken only where it is unfinished, and no select has to be compiled for every array.
    """
    del unfinished, old
    return new


@hold_finished.def_vmap
def _hold_finished_vmap(axis_size: int, in_batched: list[Any], unfinished: jax.Array, new: Any, old: Any) -> Any:
    flags, *trees = (
        jax.tree.map(lambda x, batched: x if batched else jnp.broadcast_to(x, (axis_size, *x.shape)), tree, batched)
        for tree, batched in zip((unfinished, new, old), in_batched, strict=True)
    )
    held = jax.vmap(lambda flag, x, y: jax.tree.map(lambda x, y: jnp.where(flag, x, y), x, y))(flags, *trees)
    return held, jax.tree.map(lambda _: True, held)
