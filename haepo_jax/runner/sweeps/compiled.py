"""The compiled programs of trials that share their shapes: a fixed number of lanes, laid out over the local devices."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from haepo_jax.algorithms.base import Algorithm
from haepo_jax.counting import StepCount
from haepo_jax.runner.sweeps import population
from haepo_jax.runner.sweeps.population import Lane

AXIS = "population"
MEMORY_SHARE = 0.8
"""How much of a device's memory a program may take."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """What trials must share to train in one program: their algorithm's structure, and its leaves' shapes and dtypes.

    Two values of a numeric hyperparameter share it; a number and a pair [start, end] do not, nor do two environments.
    """

    structure: Any
    leaves: tuple[tuple[tuple[int, ...], str], ...]

    @classmethod
    def of(cls, algorithm: Algorithm) -> Shape:
        """The shape of an algorithm."""
        leaves, structure = jax.tree.flatten(algorithm)
        return cls(structure, tuple((np.shape(leaf), str(_as_leaf(leaf).dtype)) for leaf in leaves))


def _as_leaf(leaf: Any) -> Any:
    """A hyperparameter as a program takes it: Python numbers are float32."""
    return np.float32(leaf) if isinstance(leaf, bool | int | float) else leaf


Numbers = list[npt.NDArray[Any]]
"""The leaves that vary between trials, each stacked along a first axis of lanes; on the host, for they are small."""


def stack(algorithms: Sequence[Algorithm]) -> Numbers:
    """The leaves of algorithms of one shape, each stacked along a first axis."""
    return [
        np.stack([np.asarray(_as_leaf(leaf)) for leaf in leaves])
        for leaves in zip(*map(jax.tree.leaves, algorithms), strict=True)
    ]


class Programs:
    """The three programs of one shape for a fixed number of lanes: `start`, `advance` and `evaluate`.

    With several devices each holds an equal share of the lanes and runs its own loop over them: no device waits for
    another within a call.

    Attributes:
      asked: lanes in one call, a multiple of the number of devices.
      size: the same, or fewer where they do not fit the memory.
      varying: which leaves differ between trials.
      points: of a learning curve.
    """

    def __init__(
        self,
        example: Algorithm,
        *,
        varying: Sequence[bool],
        points: int,
        episodes: int,
        size: int,
        devices: Sequence[Any] | None = None,
    ) -> None:
        leaves, self._structure = jax.tree.flatten(example)
        self.varying = tuple(varying)
        self._shared = [jnp.asarray(_as_leaf(leaf)) for leaf, varies in zip(leaves, varying, strict=True) if not varies]
        self.points, self._episodes = points, episodes
        self.mesh = Mesh(np.array(jax.local_devices() if devices is None else devices), (AXIS,))
        self.asked = self.size = -(-size // self.num_devices) * self.num_devices
        self._compiled: dict[str, Any] = {}

    @property
    def num_devices(self) -> int:
        return self.mesh.devices.size

    def select(self, leaves: Numbers) -> Numbers:
        """Of stacked leaves, those that vary between trials."""
        return [leaf for leaf, varies in zip(leaves, self.varying, strict=True) if varies]

    def place(self, stacked: Any) -> Any:
        """A stack on the devices, each with its share."""
        return jax.device_put(stacked, NamedSharding(self.mesh, PartitionSpec(AXIS)))

    def start(self, numbers: Numbers, seeds: npt.NDArray[np.uint32]) -> Lane:
        """Lanes before their first update, from leaves (size, ...) and seeds (size,)."""
        lane: Lane = self._compiled["start"](self._shared, self.place(numbers), self.place(seeds))
        return lane

    def advance(self, numbers: Numbers, lanes: Lane, until: int, updates: int) -> Lane:
        """Trains lanes up to `until` valid steps each, or `updates` updates; consumes `lanes`."""
        lane: Lane = self._compiled["advance"](
            self._shared, self.place(numbers), self.place(lanes), StepCount.of(until), jnp.int32(updates)
        )
        return lane

    def evaluate(self, numbers: Numbers, lanes: Lane) -> npt.NDArray[np.float64]:
        """The mean evaluation return of each lane: (size,)."""
        returns = self._compiled["evaluate"](self._shared, self.place(numbers), self.place(lanes))
        return np.asarray(returns, np.float64)

    def compile(self, numbers: Numbers) -> None:
        """Compiles ahead of time, with half the lanes for as long as they do not fit the memory.

        Args:
          numbers: stacked leaves of any length; their shapes and dtypes count.
        """
        while not self._compiled:
            compiled = self._compile(self.size, numbers)
            if _memory(compiled["advance"]) <= self._memory_limit() or self.size == self.num_devices:
                self._compiled = compiled
            else:
                self.size = max(1, self.size // 2 // self.num_devices) * self.num_devices

    def _compile(self, size: int, numbers: Numbers) -> dict[str, Any]:
        share, every = NamedSharding(self.mesh, PartitionSpec(AXIS)), NamedSharding(self.mesh, PartitionSpec())
        like: Callable[[Any, Any], Any] = lambda tree, sharding: jax.tree.map(  # noqa: E731
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )
        shared = like(self._shared, every)
        stacked = [jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype, sharding=share) for leaf in numbers]
        seeds = jax.ShapeDtypeStruct((size,), jnp.uint32, sharding=share)
        start = functools.partial(population.start, points=self.points)
        lower_start = jax.jit(self._over_lanes(start, 1)).lower(shared, stacked, seeds)
        lanes = like(lower_start.out_info, share)
        until, updates = like(jax.eval_shape(lambda: (StepCount.of(0), jnp.int32(0))), every)
        advance = jax.jit(self._over_lanes(population.advance, 1, replicated=2), donate_argnums=2)
        evaluate = jax.jit(self._over_lanes(functools.partial(population.evaluate, episodes=self._episodes), 1))
        lowered = {
            "start": lower_start,
            "advance": advance.lower(shared, stacked, lanes, until, updates),
            "evaluate": evaluate.lower(shared, stacked, lanes),
        }
        with ThreadPoolExecutor(len(lowered)) as pool:  # XLA releases the GIL while it compiles
            return dict(zip(lowered, pool.map(lambda program: program.compile(), lowered.values()), strict=True))

    def _over_lanes(self, function: Any, stacked: int, *, replicated: int = 0) -> Any:
        """`function(algorithm, *arguments)` of a lane -> (shared, numbers, *arguments) of a stack."""

        def one(shared: list[Any], numbers: list[Any], *arguments: Any) -> Any:
            kept, own = iter(shared), iter(numbers)
            leaves = [next(own) if varies else next(kept) for varies in self.varying]
            return function(jax.tree.unflatten(self._structure, leaves), *arguments)

        over = jax.vmap(one, in_axes=(None, 0, *(0,) * stacked, *(None,) * replicated))
        if self.num_devices == 1:
            return over
        share, every = PartitionSpec(AXIS), PartitionSpec()
        specs = (every, share, *(share,) * stacked, *(every,) * replicated)
        return jax.shard_map(over, mesh=self.mesh, in_specs=specs, out_specs=share, check_vma=False)

    def _memory_limit(self) -> float:
        """Bytes of a device that a program may take."""
        device = self.mesh.devices.flat[0]
        limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
        if limit is None:
            # The CPU devices of one process share the host's memory.
            limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / self.num_devices
        return float(limit) * MEMORY_SHARE


def _memory(program: Any) -> int:
    """Bytes that a compiled program takes on each device, by the compiler's own account; 0 where it gives none."""
    analysis = program.memory_analysis()
    if analysis is None:
        return 0
    used = analysis.temp_size_in_bytes + analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    return int(used - analysis.alias_size_in_bytes)
