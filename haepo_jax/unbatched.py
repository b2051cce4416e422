"""Reductions over all batch elements, whose result stays unbatched under `jax.vmap`.

A `lax.while_loop`, `lax.cond` or `lax.switch` with a batched predicate computes every branch and selects. If the
decision is only about how much work to do (is any environment running? how long is the longest episode?), one answer
for the whole batch is enough, and keeps real control flow under any nesting of vmaps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def _over_whole_batch(reduction: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """A reduction to an unbatched scalar () over the batch axes of all enclosing vmaps."""

    @jax.custom_batching.custom_vmap
    def function(x: jax.Array) -> jax.Array:
        return reduction(x)

    @function.def_vmap
    def _(axis_size: int, in_batched: list[bool], x: jax.Array) -> tuple[jax.Array, Any]:
        return function(x), False

    return function


any_in_batch = _over_whole_batch(jnp.any)
"""Whether any flag is true: (...) bool -> () bool."""
max_in_batch = _over_whole_batch(jnp.max)
"""The largest value: (...) -> ()."""


@jax.custom_batching.custom_vmap
def hold_finished(unfinished: jax.Array, new: Any, old: Any) -> Any:
    """Keeps finished batch elements unchanged in a `while_loop` with predicate `any_in_batch(unfinished)`.

    Returns `new`, and under `jax.vmap` `old` for batch elements that have finished. `unfinished` is a () bool, `new`
    and `old` are pytrees of the same structure. Without vmap the body only runs if unfinished, so no select is
    compiled.
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
