"""The numerics of a sweep: one seed of one configuration is a lane, and many lanes train in one compiled program.

A lane's randomness comes from its own key and its end from its own step count, so it gives the same result wherever it
stands in a stack of lanes and however its training is cut into calls.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from haepo_jax.algorithms.base import Algorithm
from haepo_jax.algorithms.state import EPISODE_MEANS, TrainState
from haepo_jax.counting import StepCount
from haepo_jax.unbatched import any_in_batch, hold_finished

AXIS = "lanes"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lane:
    """One seed of one configuration in training; stacked, every leaf has the lanes as its first axis.

    Attributes:
      state: the train state.
      curve_sum, curve_count: (points,) float32, the sum and number of the training returns of the updates that ended in
        each of `points` equal parts of the run.
      episode_length: () float32, mean of the last update in which an episode ended; 0 before the first.
    """

    state: TrainState
    curve_sum: jax.Array
    curve_count: jax.Array
    episode_length: jax.Array


def start(algorithm: Algorithm, seed: jax.Array, points: int) -> Lane:
    """A lane before its first update, with a learning curve of `points`. Its key is that of `train` with that seed."""
    state = algorithm.init(jax.random.key(seed))
    return Lane(state, jnp.zeros(points), jnp.zeros(points), jnp.zeros(()))


def advance(algorithm: Algorithm, lane: Lane, until: StepCount, updates: jax.Array) -> Lane:
    """Trains until `until` valid steps are done or `updates` () int32 updates made, whichever comes first.

    `Algorithm.advance` with a learning curve and a limit on updates. vmapped, the lanes that have finished stay as they
    are, and the loop ends with the last one.
    """

    def unfinished(lane: Lane) -> jax.Array:
        return (lane.state.env_steps < until) & ~lane.state.status.diverged

    def step(loop: tuple[jax.Array, Lane]) -> tuple[jax.Array, Lane]:
        made, lane = loop
        state, metrics = algorithm.train_step(lane.state)
        return made + 1, hold_finished(unfinished(lane), _record(algorithm, lane, state, metrics), lane)

    def more(loop: tuple[jax.Array, Lane]) -> jax.Array:
        made, lane = loop
        return (made < updates) & any_in_batch(unfinished(lane))

    return jax.lax.while_loop(more, step, (jnp.int32(0), lane))[1]


def _record(algorithm: Algorithm, lane: Lane, state: TrainState, metrics: dict[str, jax.Array]) -> Lane:
    points = lane.curve_sum.shape[0]
    part = jnp.minimum(state.env_steps.fraction_of(algorithm.total_steps) * points, points - 1).astype(jnp.int32)
    # A custom algorithm may have neither; a mean over no episode is 0.
    value, length = (metrics.get(name, jnp.float32(jnp.nan)) for name in EPISODE_MEANS)
    ended = metrics.get("episodes", 1) > 0
    known = jnp.isfinite(value) & ended & ~state.status.diverged
    return Lane(
        state=state,
        curve_sum=lane.curve_sum.at[part].add(jnp.where(known, value, 0.0)),
        curve_count=lane.curve_count.at[part].add(known.astype(jnp.float32)),
        episode_length=jnp.where(jnp.isfinite(length) & ended, length, lane.episode_length),
    )


def evaluate(algorithm: Algorithm, lane: Lane, episodes: int) -> jax.Array:
    """The mean return of `episodes` episodes with sampled actions: () float32."""
    return jnp.mean(algorithm.evaluate(lane.state, episodes=episodes)["return"])


# --- Compiled over a stack of lanes -----------------------------------------------------------------------------------

Numbers = list[npt.NDArray[Any]]
"""The hyperparameters that vary between trials, each stacked along a first axis of lanes; on the host, as they are small."""


def _as_leaf(leaf: Any) -> Any:
    """A hyperparameter as a program takes it: Python numbers are float32."""
    return np.float32(leaf) if isinstance(leaf, bool | int | float) else leaf


def shape_of(algorithm: Algorithm) -> Hashable:
    """What trials must share to train in one program: their algorithm's structure, and its leaves' shapes and dtypes.

    Two values of a numeric hyperparameter share it; a number and a pair [start, end] do not, nor do two environments.
    """
    leaves, structure = jax.tree.flatten(algorithm)
    return structure, tuple((np.shape(leaf), str(_as_leaf(leaf).dtype)) for leaf in leaves)


class Programs:
    """`start`, `advance` and `evaluate` of one shape, compiled ahead of time for a fixed number of lanes.

    With several devices each holds an equal share of the lanes and runs its own loop over them: no device waits for
    another within a call.

    Attributes:
      size: lanes in one call, a multiple of the number of devices.
      places: where each hyperparameter that is one number stands among those that vary.
    """

    def __init__(self, example: Algorithm, *, points: int, episodes: int, size: int, vary_env: bool = False) -> None:
        """Compiles for algorithms like `example`; numbers of the environment are those of all, unless `vary_env`."""
        paths, self._structure = jax.tree_util.tree_flatten_with_path(example)
        self._varying = [vary_env or path[0].name != "env" for path, _ in paths]
        self._shared = [
            jnp.asarray(_as_leaf(x)) for (_, x), varies in zip(paths, self._varying, strict=True) if not varies
        ]
        self.mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
        self.num_devices = self.mesh.devices.size
        self.size = -(-size // self.num_devices) * self.num_devices
        varying = self.numbers([example])
        names = [path[0].name if len(path) == 1 else "" for (path, _), v in zip(paths, self._varying, strict=True) if v]
        self.places = {n: i for i, (n, leaf) in enumerate(zip(names, varying, strict=True)) if n and leaf.ndim == 1}
        self._compiled = self._compile(varying, points, episodes)

    def numbers(self, algorithms: Sequence[Algorithm]) -> Numbers:
        """The leaves of algorithms that vary between trials, each stacked along a first axis."""
        stacks = zip(self._varying, *map(jax.tree.leaves, algorithms), strict=True)
        return [np.stack([np.asarray(_as_leaf(leaf)) for leaf in leaves]) for varies, *leaves in stacks if varies]

    def place(self, stacked: Any) -> Any:
        """A stack on the devices, each with its share."""
        return jax.device_put(stacked, NamedSharding(self.mesh, PartitionSpec(AXIS)))

    def __call__(self, name: str, numbers: Numbers, lanes: Any, *limits: Any) -> Any:
        """Runs a program on leaves (size, ...) and lanes (size,): for `start` their seeds. `advance` consumes the lanes."""
        return self._compiled[name](self._shared, self.place(numbers), self.place(lanes), *limits)

    def _compile(self, varying: Numbers, points: int, episodes: int) -> dict[str, Any]:
        share, everywhere = (NamedSharding(self.mesh, spec) for spec in (PartitionSpec(AXIS), PartitionSpec()))

        def like(tree: Any, sharding: NamedSharding, *size: int) -> Any:
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*size, *x.shape), x.dtype, sharding=sharding), tree)

        shared, numbers = like(self._shared, everywhere), like([leaf[0] for leaf in varying], share, self.size)
        begin = jax.jit(self._over_lanes(functools.partial(start, points=points)))
        lowered = {"start": begin.lower(shared, numbers, like(np.uint32(0), share, self.size))}
        lanes = like(lowered["start"].out_info, share)
        limits = like(jax.eval_shape(lambda: (StepCount.of(0), jnp.int32(0))), everywhere)
        train = jax.jit(self._over_lanes(advance, limits=2), donate_argnums=2)
        lowered["advance"] = train.lower(shared, numbers, lanes, *limits)
        play = jax.jit(self._over_lanes(functools.partial(evaluate, episodes=episodes)))
        lowered["evaluate"] = play.lower(shared, numbers, lanes)
        with ThreadPoolExecutor(len(lowered)) as pool:  # XLA releases the GIL while it compiles
            return dict(zip(lowered, pool.map(lambda program: program.compile(), lowered.values()), strict=True))

    def _over_lanes(self, function: Any, limits: int = 0) -> Any:
        """`function(algorithm, lane, *limits)` as a function of (shared, numbers, lanes, *limits)."""

        def one(shared: list[Any], numbers: list[Any], *arguments: Any) -> Any:
            kept, own = iter(shared), iter(numbers)
            leaves = [next(own) if varies else next(kept) for varies in self._varying]
            return function(jax.tree.unflatten(self._structure, leaves), *arguments)

        over = jax.vmap(one, in_axes=(None, 0, 0, *(None,) * limits))
        if self.num_devices == 1:
            return over
        share, everywhere = PartitionSpec(AXIS), PartitionSpec()
        specs = (everywhere, share, share, *(everywhere,) * limits)
        return jax.shard_map(over, mesh=self.mesh, in_specs=specs, out_specs=share, check_vma=False)
