"""Data parallelism over several devices: environments are sharded, parameters are replicated.

Every device steps its shard of the environments, and XLA reduces sums and softmaxes over trajectories across devices,
so that the mathematics is that of a single device. A sweep shards its trials instead, which needs no communication; see
`haepo_jax.runner.sweeps.batch`.

    with haepo_jax.sharding.over_environments():
        state, metrics = jax.jit(algo.train)(key)
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
    """Context manager in which jitted functions shard their environments over devices, by default all of all hosts.

    `num_envs` should be a multiple of the number of devices. It sets a mesh with the single axis `AXIS`, as
    `jax.set_mesh` does; any other mesh that has this axis works as well.
    """
    mesh = environment_mesh(jax.devices() if devices is None else devices)
    with jax.set_mesh(mesh):
        yield mesh


def environment_mesh(devices: Sequence[Any]) -> Mesh:
    """A mesh of devices with the single axis `AXIS`."""
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def environments_are_sharded() -> bool:
    """Whether the current mesh has the axis `AXIS`, along which environments are sharded."""
    mesh = jax.sharding.get_abstract_mesh()
    return dict(zip(mesh.axis_names, mesh.axis_types, strict=True)).get(AXIS) is AxisType.Auto


def shard_environments(tree: Any) -> Any:
    """Shards arrays along their first axis, that of environments, if the current mesh has the axis `AXIS`.

    Arrays that do not divide evenly are left to XLA, and so are arrays that are not traced.
    """
    if not environments_are_sharded():
        return tree
    mesh = jax.sharding.get_abstract_mesh()

    def constrain(x: jax.Array) -> jax.Array:
        if x.shape[0] % mesh.shape[AXIS] or not isinstance(x, jax.core.Tracer):
            return x
        return jax.lax.with_sharding_constraint(x, PartitionSpec(AXIS))

    return jax.tree.map(constrain, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of replicated arrays, such as parameters."""
    return NamedSharding(mesh, PartitionSpec())


def local_copy(tree: Any) -> Any:
    """The copy of replicated arrays on the first device of this process."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree)
