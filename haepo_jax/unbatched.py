"""Reductions that stay one value for the whole batch under `jax.vmap`.

A `lax.while_loop`, `lax.cond` or `lax.switch` whose predicate is batched computes every branch and selects. Where a
decision is only about how much work to do (is any lane alive? how long is the longest episode?), one answer for all
lanes is right, and keeps the control flow real under any nesting of vmaps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def _over_every_lane(reduction: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """A reduction to one value, () and never batched, over every lane of every enclosing vmap."""

    @jax.custom_batching.custom_vmap
    def function(x: jax.Array) -> jax.Array:
        return reduction(x)

    @function.def_vmap
    def _(axis_size: int, in_batched: list[bool], x: jax.Array) -> tuple[jax.Array, Any]:
        return function(x), False

    return function


any_in_batch = _over_every_lane(jnp.any)
"""Whether any flag is true: (...) bool -> () bool."""
max_in_batch = _over_every_lane(jnp.max)
"""The largest value: (...) -> ()."""


@jax.custom_batching.custom_vmap
def hold_finished(unfinished: jax.Array, new: Any, old: Any) -> Any:
    """What the turn of a `while_loop` leaves behind whose predicate is `any_in_batch(unfinished)`: `new`, and in a lane
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
