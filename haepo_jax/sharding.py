"""One run over several devices: its environments are shared out, its parameters are on all of them.

A sweep shares out its trials instead, which needs no communication; see `haepo_jax.sweeps.program`. Here every device
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
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "environments"

_meshes: list[Mesh] = []


@contextlib.contextmanager
def over_environments(devices: Sequence[Any] | None = None) -> Iterator[Mesh]:
    """What is traced while it is entered shares its environments out over devices; by default all, of every host.

    It acts where a function is traced, so enter it around the first call, or `lower`, of a jitted function; one that
    was traced outside stays as it is. `num_envs` should be a multiple of the number of devices.
    """
    mesh = Mesh(np.array(jax.devices() if devices is None else devices), (AXIS,))
    _meshes.append(mesh)
    try:
        yield mesh
    finally:
        _meshes.pop()


def share_out(lanes: Any) -> Any:
    """Arrays with environments as their first axis, shared out where `over_environments` is entered; else as they are.

    An axis that cannot be shared out equally is left to XLA.
    """
    if not _meshes:
        return lanes
    mesh = _meshes[-1]

    def constrain(x: jax.Array) -> jax.Array:
        if x.shape[0] % mesh.devices.size:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(AXIS)))

    return jax.tree.map(constrain, lanes)


def initialize_distributed(**settings: Any) -> None:
    """Joins this process to the others of its job, before jax computes anything; a job of one process is left alone.

    jax finds the coordinator, the number of processes and this one's place by itself on SLURM, Open MPI, Kubernetes and
    cloud TPUs; elsewhere give what `jax.distributed.initialize` takes: `coordinator_address`, `num_processes` and
    `process_id`.

    Raises:
      RuntimeError: jax has computed something already, or the processes do not find each other.
      ValueError: nothing says what job this is.
    """
    if not jax.distributed.is_initialized():
        jax.distributed.initialize(**settings)
