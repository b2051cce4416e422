"""Gradient clipping in few kernels."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax


def global_norm(tree: Any) -> jax.Array:
    """The Euclidean norm of all numbers of a tree, ().

    On an accelerator that of one long vector, where a sum for each leaf would be a kernel for each.
    """

    def of_vector(tree: Any) -> jax.Array:
        return jnp.sqrt(jnp.sum(jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)]) ** 2))

    return jax.lax.platform_dependent(tree, cpu=optax.tree.norm, default=of_vector)


def clip_by_global_norm(max_norm: Any) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm` with this module's norm."""

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        norm = global_norm(gradients)
        clip = lambda x: jax.lax.select(norm < max_norm, x, (x / norm.astype(x.dtype)) * max_norm)  # noqa: E731
        return jax.tree.map(clip, gradients), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
