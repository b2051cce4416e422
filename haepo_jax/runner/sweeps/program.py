"""Trials that share their shapes, compiled once for a number of lanes and laid out over the local devices."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
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


def step_counts(values: Sequence[int]) -> StepCount:
    """Counts of a stack of lanes: (L,)."""
    exact = np.array(values, np.uint64)
    words: Any = ((exact >> np.uint64(32)).astype(np.uint32), exact.astype(np.uint32))
    return StepCount(*words)


@dataclasses.dataclass(frozen=True)
class Shape:
    """What trials must share to train in one program: their algorithm's structure, and its leaves' shapes and types.

    Two numbers of one hyperparameter share it, a number and a pair [start, end] do not; nor do two environments.
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
    """The compiled programs of one shape, for each number of lanes: one starts, one trains, one evaluates.

    With several devices each holds an equal share of the lanes, and runs its own loop over them: no device waits for
    another within a call.

    Attributes:
      compilations: how many numbers of lanes have been compiled.
      compile_seconds: of all of them together.
    """

    def __init__(
        self,
        example: Algorithm,
        *,
        varying: Sequence[bool],
        points: int,
        episodes: int,
        devices: Sequence[Any] | None = None,
    ) -> None:
        leaves, self._structure = jax.tree.flatten(example)
        self.varying = tuple(varying)
        self._shared = [jnp.asarray(_as_leaf(leaf)) for leaf, varies in zip(leaves, varying, strict=True) if not varies]
        self._points, self._episodes = points, episodes
        self.mesh = Mesh(np.array(jax.local_devices() if devices is None else devices), (AXIS,))
        self.compilations = 0
        self.compile_seconds = 0.0
        self._compiled: dict[int, dict[str, Any]] = {}

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
        """Fresh lanes from leaves (L, ...) and seeds (L,)."""
        lane: Lane = self._at(len(seeds))["start"](self._shared, self.place(numbers), self.place(seeds))
        return lane

    def advance(self, numbers: Numbers, lanes: Lane, until: Sequence[int], updates: int) -> Lane:
        """Trains a stack; uses up `lanes`. Each lane stops at its own `until`, all after `updates`."""
        program = self._at(len(until))["advance"]
        lane: Lane = program(
            self._shared, self.place(numbers), self.place(lanes), self.place(step_counts(until)), jnp.int32(updates)
        )
        return lane

    def evaluate(self, numbers: Numbers, lanes: Lane) -> np.ndarray[Any, Any]:
        """The mean evaluation return of each lane: (L,)."""
        size = lanes.episode_length.shape[0]
        return np.asarray(self._at(size)["evaluate"](self._shared, self.place(numbers), self.place(lanes)), np.float64)

    def is_compiled(self, size: int) -> bool:
        """Whether a call with that many lanes compiles nothing."""
        return size in self._compiled

    def compile(self, size: int, numbers: Numbers) -> None:
        """Compiles the programs for `size` lanes ahead of time; `numbers` of any length tell the leaves' shapes."""
        if size % self.num_devices:
            raise ValueError(f"{size} lanes cannot be shared equally by {self.num_devices} devices")
        if size in self._compiled:
            return
        begin = time.perf_counter()
        share, every = NamedSharding(self.mesh, PartitionSpec(AXIS)), NamedSharding(self.mesh, PartitionSpec())
        like: Callable[[Any, Any], Any] = lambda tree, sharding: jax.tree.map(  # noqa: E731
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )
        shared = like(self._shared, every)
        stacked = [jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype, sharding=share) for leaf in numbers]
        seeds = jax.ShapeDtypeStruct((size,), jnp.uint32, sharding=share)
        lower_start = jax.jit(self._over_lanes(functools.partial(population.start, points=self._points), 1)).lower(
            shared, stacked, seeds
        )
        lanes = like(lower_start.out_info, share)
        until = like(step_counts([0] * size), share)
        updates = jax.ShapeDtypeStruct((), jnp.int32, sharding=every)
        advance = jax.jit(self._over_lanes(population.advance, 2, replicated=1), donate_argnums=2)
        evaluate = jax.jit(self._over_lanes(functools.partial(population.evaluate, episodes=self._episodes), 1))
        lowered = {
            "start": lower_start,
            "advance": advance.lower(shared, stacked, lanes, until, updates),
            "evaluate": evaluate.lower(shared, stacked, lanes),
        }
        # XLA lets go of Python's lock while it compiles.
        with ThreadPoolExecutor(len(lowered)) as pool:
            self._compiled[size] = dict(
                zip(lowered, pool.map(lambda program: program.compile(), lowered.values()), strict=True)
            )
        self.compilations += 1
        self.compile_seconds += time.perf_counter() - begin

    def _at(self, size: int) -> dict[str, Any]:
        if size not in self._compiled:
            raise ValueError(f"compile({size}) comes first")
        return self._compiled[size]

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

    def memory_per_device(self, size: int) -> int:
        """Bytes on each device to train `size` lanes, by the compiler's own account; 0 where it gives none."""
        analysis = self._at(size)["advance"].memory_analysis()
        if analysis is None:
            return 0
        return int(
            analysis.temp_size_in_bytes
            + analysis.argument_size_in_bytes
            + analysis.output_size_in_bytes
            - analysis.alias_size_in_bytes
        )

    def memory_of_largest(self) -> tuple[int, int]:
        """The largest number of lanes compiled so far, and the bytes it takes on each device."""
        size = max(self._compiled)
        return size, self.memory_per_device(size)

    def memory_limit(self) -> float:
        """Bytes that a device may give to a program."""
        device = self.mesh.devices.flat[0]
        limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
        if limit is None:
            # Simulated devices share the host's memory, as do the copies of it that XLA may keep.
            limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / self.num_devices
        return float(limit) * MEMORY_SHARE


class BatchSize:
    """How many lanes train in one call: given, or climbed to by doubling for as long as that raises the throughput.

    What is measured is the training itself: lanes may change their batch between two calls, so no step is wasted. A
    size is tried only where what it can save pays for its compilation.
    """

    GAIN = 1.05
    """A larger batch is kept where it is this many times as fast."""
    WORTH = 0.2
    """The share of the time left that a larger batch is expected to save, and so may cost to compile."""

    def __init__(self, programs: Programs, start: int, *, fixed: bool) -> None:
        self.programs = programs
        self.size = start
        self._fixed = self._settled = fixed
        self._rates: dict[int, float] = {}

    def compile_first(self, numbers: Numbers) -> None:
        """Compiles the present size; a size that was not asked for is taken down until it fits the memory."""
        self.programs.compile(self.size, numbers)
        devices = self.programs.num_devices
        while (
            not self._fixed
            and self.size > devices
            and self.programs.memory_per_device(self.size) > self.programs.memory_limit()
        ):
            self.size = max(devices, self.size // 2 // devices * devices)
            self._settled = True
            self.programs.compile(self.size, numbers)

    def largest_in_memory(self, size: int) -> int:
        """At most `size` lanes, by what the programs compiled so far take."""
        known, needed = self.programs.memory_of_largest()
        limit = self.programs.memory_limit()
        return size if needed * size <= limit * known else int(limit * known / needed)

    def measured(self, size: int, rate: float, active: int, seconds_left: float, numbers: Numbers) -> None:
        """Takes note that `size` lanes did `rate` steps a second; `active` lanes have `seconds_left` to go."""
        self._rates[size] = rate
        if self._settled or size != self.size:
            return
        if size // 2 in self._rates and rate < self.GAIN * self._rates[size // 2]:
            self.size, self._settled = size // 2, True
            return
        double = 2 * size
        cost = self.programs.compile_seconds / max(1, self.programs.compilations)
        if double > active or self.largest_in_memory(double) < double or seconds_left * self.WORTH < cost:
            self._settled = True
            return
        self.programs.compile(double, numbers)
        self.size = double
