"""One run over several devices: its environments are shared out, its parameters are on all of them.

A sweep shares out its trials instead, which needs no communication; see `haepo_jax.runner.sweeps.lanes`. Here every device
plays its share of an update's episodes, and XLA puts the sums and softmaxes over trajectories together from all of
them, so that the mathematics is that of one device.

    with haepo_jax.sharding.over_environments():
        state, history = jax.jit(algo.train)(key)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "environments"


@contextlib.contextmanager
def over_environments(devices: Sequence[Any] | None = None) -> Iterator[Mesh]:
    """Jitted functions that are called, or lowered, in it share their environments out over devices; by default over
    all, of every host. `num_envs` should be a multiple of their number.

    It sets jax's own mesh, as `jax.set_mesh` does, with the one axis `AXIS`; in any mesh that has it, of whatever
    further axes, environments are shared out along it.
    """
    mesh = Mesh(np.array(jax.devices() if devices is None else devices), (AXIS,), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        yield mesh


def shares_out() -> bool:
    """Whether jax's mesh has the axis along which environments are shared out."""
    mesh = jax.sharding.get_abstract_mesh()
    return dict(zip(mesh.axis_names, mesh.axis_types, strict=True)).get(AXIS) is AxisType.Auto


def share_out(lanes: Any) -> Any:
    """Arrays with environments as their first axis, shared out where jax's mesh has the axis for it; else as they are.

    An axis that cannot be shared out equally is left to XLA, and so is what is not traced.
    """
    if not shares_out():
        return lanes
    mesh = jax.sharding.get_abstract_mesh()

    def constrain(x: jax.Array) -> jax.Array:
        if x.shape[0] % mesh.shape[AXIS] or not isinstance(x, jax.core.Tracer):
            return x
        return jax.lax.with_sharding_constraint(x, PartitionSpec(AXIS))

    return jax.tree.map(constrain, lanes)


def whole(mesh: Mesh) -> NamedSharding:
    """Of arrays that every device of a mesh holds in full, parameters among them."""
    return NamedSharding(mesh, PartitionSpec())


def own_copy(tree: Any) -> Any:
    """Arrays that every device holds in full, as this process's first device has them."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree)
