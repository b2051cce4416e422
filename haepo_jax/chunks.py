"""A scan that stops where nothing lives any more, in both directions of differentiation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def scan_live(
    function: Callable[[Any, Any, Any], tuple[Any, Any]], params: Any, carry: Any, inputs: Any, count: jax.Array
) -> Any:
    """The outputs of `jax.lax.scan` over the first `count` of the inputs, and 0 behind them.

    A loop whose number of turns is known only when it runs, forward and back: it costs what is live and is compiled
    once. jax differentiates a scan, whose number of turns is fixed, but no `while_loop`.

    Args:
      function: (params, carry, input) -> (carry, output); the output is floating point.
      params: floating point; the result is differentiable in these alone, in reverse mode.
      carry: of the first turn.
      inputs: arrays with the scanned axis first.
      count: () int32. Where it is batched by `jax.vmap`, every lane takes as many turns as the longest.
    """
    structure: Any = None

    def outputs_and(keep: bool, params: Any, carry: Any, inputs: Any, count: jax.Array) -> tuple[Any, Any]:
        """The outputs, and if `keep` what each turn's pullback needs."""

        def turn(carry: Any, index: jax.Array) -> tuple[Any, Any]:
            nonlocal structure
            (carry, output), pullback = jax.vjp(lambda p, c: function(p, c, _at(inputs, index)), params, carry)
            kept, structure = jax.tree.flatten(pullback)
            return carry, (output, kept if keep else [])

        def body(index: jax.Array, loop: tuple[Any, Any]) -> tuple[Any, Any]:
            carry, made = turn(loop[0], index)
            return carry, jax.tree.map(lambda buffer, x: buffer.at[index].set(x), loop[1], made)

        length = jax.tree.leaves(inputs)[0].shape[0]
        shapes = jax.eval_shape(turn, carry, jnp.int32(0))[1]
        buffers = jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), shapes)
        return jax.lax.fori_loop(0, count, body, (carry, buffers))[1]

    @jax.custom_vjp
    def outputs(*arguments: Any) -> Any:
        return outputs_and(False, *arguments)[0]

    def forward(*arguments: Any) -> tuple[Any, Any]:
        made, kept = outputs_and(True, *arguments)
        return made, (*arguments, kept)

    def backward(residuals: Any, outputs_bar: Any) -> tuple[Any, None, None, None]:
        params, carry, _, count, kept = residuals

        def body(turns: jax.Array, loop: tuple[Any, Any]) -> tuple[Any, Any]:
            index = count - 1 - turns
            pullback = jax.tree.unflatten(structure, _at(kept, index))
            params_bar, carry_bar = pullback((jax.tree.map(_cotangent, loop[1]), _at(outputs_bar, index)))
            keep_ints = lambda new, old: old if new.dtype == jax.dtypes.float0 else new  # noqa: E731
            return jax.tree.map(jnp.add, loop[0], params_bar), jax.tree.map(keep_ints, carry_bar, loop[1])

        start = jax.tree.map(jnp.zeros_like, (params, carry))
        return jax.lax.fori_loop(0, count, body, start)[0], None, None, None

    outputs.defvjp(forward, backward)
    return outputs(params, carry, inputs, count)


def _at(tree: Any, index: jax.Array) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), tree)


def _cotangent(x: jax.Array) -> Any:
    """jax takes no other cotangent of an integer than one of its own type float0."""
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else np.zeros(x.shape, jax.dtypes.float0)
