"""The numerics of a sweep: a training run is one seed of one configuration, and many of them are one compiled program.

The randomness of a run comes from its own key and its end from its own step count, so it gives the same result wherever
it stands in a batch and however its training is cut into calls.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Sequence
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

AXIS = "runs"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Run:
    """One seed of one configuration in training; in a batch, every leaf has the runs as its first axis.

    Attributes:
      state: the train state.
      curve_sum, curve_count: (points,) float32, the sum and number of the training returns of the updates that ended in
        each of `points` equal segments of the run.
      episode_length: () float32, mean of the last update in which an episode ended; 0 before the first.
    """

    state: TrainState
    curve_sum: jax.Array
    curve_count: jax.Array
    episode_length: jax.Array


def start(algorithm: Algorithm, seed: jax.Array, points: int) -> Run:
    """A run before its first update, with a learning curve of `points`. Its key is that of `train` with that seed."""
    state = algorithm.init(jax.random.key(seed))
    return Run(state, jnp.zeros(points), jnp.zeros(points), jnp.zeros(()))


def advance(algorithm: Algorithm, run: Run, until: StepCount, updates: jax.Array) -> Run:
    """Trains until `until` valid steps are done or `updates` () int32 updates made, whichever comes first.

    `Algorithm.advance` with a learning curve and a limit on updates. vmapped, the runs that have finished stay as they
    are, and the loop ends with the last one.
    """

    def unfinished(run: Run) -> jax.Array:
        return (run.state.env_steps < until) & ~run.state.status.diverged

    def step(loop: tuple[jax.Array, Run]) -> tuple[jax.Array, Run]:
        made, run = loop
        state, metrics = algorithm.train_step(run.state)
        return made + 1, hold_finished(unfinished(run), _record(algorithm, run, state, metrics), run)

    def more(loop: tuple[jax.Array, Run]) -> jax.Array:
        made, run = loop
        return (made < updates) & any_in_batch(unfinished(run))

    return jax.lax.while_loop(more, step, (jnp.int32(0), run))[1]


def _record(algorithm: Algorithm, run: Run, state: TrainState, metrics: dict[str, jax.Array]) -> Run:
    points = run.curve_sum.shape[0]
    point = jnp.minimum(state.env_steps.fraction_of(algorithm.total_steps) * points, points - 1).astype(jnp.int32)
    # A custom algorithm may have neither; a mean over no episode is 0.
    value, length = (metrics.get(name, jnp.float32(jnp.nan)) for name in EPISODE_MEANS)
    ended = metrics.get("episodes", 1) > 0
    known = jnp.isfinite(value) & ended & ~state.status.diverged
    return Run(
        state=state,
        curve_sum=run.curve_sum.at[point].add(jnp.where(known, value, 0.0)),
        curve_count=run.curve_count.at[point].add(known.astype(jnp.float32)),
        episode_length=jnp.where(jnp.isfinite(length) & ended, length, run.episode_length),
    )


def evaluate(algorithm: Algorithm, run: Run, episodes: int, max_steps: int | None) -> jax.Array:
    """The mean return of `episodes` episodes with sampled actions: () float32."""
    return jnp.mean(algorithm.evaluate(run.state, episodes=episodes, max_steps=max_steps)["return"])


def _as_leaf(leaf: Any) -> Any:
    """A hyperparameter as a program takes it: Python numbers are float32."""
    return np.float32(leaf) if isinstance(leaf, bool | int | float) else leaf


def shape_of(algorithm: Algorithm) -> Hashable:
    """What trials must share to train in one program: their algorithm's structure, and its leaves' shapes and dtypes.

    Two values of a numeric hyperparameter share it; a number and a pair [start, end] do not.
    """
    leaves, structure = jax.tree.flatten(algorithm)
    return structure, tuple((np.shape(leaf), str(_as_leaf(leaf).dtype)) for leaf in leaves)


class Programs:
    """`start`, `advance` and `evaluate` over batches of runs of one shape, compiled at the first call for each number of runs.

    All three take the numbers of the runs and what each run starts from: its seed for `start`, a `Run` for the others.
    With several devices each holds a shard of the runs, whose number must be a multiple of the devices, and has its own
    loop: no device waits for another within a call.
    """

    def __init__(
        self, example: Algorithm, *, points: int, episodes: int, max_steps: int | None = None, vary_env: bool = False
    ) -> None:
        """For algorithms like `example`; numbers of the environment are those of all, unless `vary_env`."""
        paths, self._structure = jax.tree_util.tree_flatten_with_path(example)
        self._varying = [vary_env or path[0].name != "env" for path, _ in paths]
        self._shared = [
            jnp.asarray(_as_leaf(leaf)) for (_, leaf), varies in zip(paths, self._varying, strict=True) if not varies
        ]
        self.mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
        self.num_devices = self.mesh.devices.size
        self.start = self._over_runs(functools.partial(start, points=points))
        self.advance = self._over_runs(advance, limits=2, consumed=(2,))
        self.evaluate = self._over_runs(functools.partial(evaluate, episodes=episodes, max_steps=max_steps))

    def numbers(self, algorithms: Sequence[Algorithm]) -> list[npt.NDArray[Any]]:
        """The leaves of algorithms that vary between trials, each stacked along a first axis; on the host, as they are
        small."""
        stacks = zip(self._varying, *map(jax.tree.leaves, algorithms), strict=True)
        return [np.stack([np.asarray(_as_leaf(leaf)) for leaf in leaves]) for varies, *leaves in stacks if varies]

    def place(self, stacked: Any) -> Any:
        """A stack on the devices, each with its shard."""
        return jax.device_put(stacked, NamedSharding(self.mesh, PartitionSpec(AXIS)))

    def _over_runs(
        self, function: Callable[..., Any], limits: int = 0, consumed: tuple[int, ...] = ()
    ) -> Callable[..., Any]:
        """`function(algorithm, run, *limits)` over batches: a function of numbers, runs and limits."""

        def one(shared: list[Any], numbers: list[Any], *arguments: Any) -> Any:
            kept, own = iter(shared), iter(numbers)
            leaves = [next(own) if varies else next(kept) for varies in self._varying]
            return function(jax.tree.unflatten(self._structure, leaves), *arguments)

        over = jax.vmap(one, in_axes=(None, 0, 0, *(None,) * limits))
        if self.num_devices > 1:
            shard, everywhere = PartitionSpec(AXIS), PartitionSpec()
            specs = (everywhere, shard, shard, *(everywhere,) * limits)
            over = jax.shard_map(over, mesh=self.mesh, in_specs=specs, out_specs=shard, check_vma=False)
        compiled = jax.jit(over, donate_argnums=consumed)
        return lambda numbers, runs, *limits: compiled(self._shared, self.place(numbers), self.place(runs), *limits)
