"""Runs a training: compiles an algorithm over its seeds, advances it row by row and tells observers what happens.

Everything that numerical code needs is built before the first step; the loop itself only moves counters and clocks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata, util
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

import haepo_jax
from haepo_jax import sharding
from haepo_jax.algorithms import hyperparameters
from haepo_jax.algorithms.base import CAUSES, Algorithm, Start, TrainState
from haepo_jax.config import ConfigError, RunConfig, one_line, short
from haepo_jax.counting import StepCount
from haepo_jax.training.checkpoints import Checkpoint, CheckpointError, Saver, from_arrays, to_arrays
from haepo_jax.training.entry import DeviceError, Interrupted
from haepo_jax.training.processes import Processes
from haepo_jax.training.resume import settings_that_matter
from haepo_jax.training.statistics import interquartile_mean, mean_of_known

SLICE_SECONDS = 1.0
"""How long one compiled call may be expected to take: between two calls progress is shown and Ctrl-C is heard."""

ACCELERATOR_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm60_plugin", "jax_rocm7_plugin", "libtpu")
ACCELERATOR_NODES = ("/dev/nvidia0", "/dev/kfd", "/dev/accel0")

PACKAGES = (
    "jax",
    "jaxlib",
    "haepo_jax",
    "flax",
    "optax",
    "gymnax",
    "brax",
    "playground",
    "jumanji",
    "craftax",
    "pgx",
    "xminigrid",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A logged update. Lists hold one value per seed, because seeds differ in how long their episodes are.

    Attributes:
      index: of the row, counted from 0.
      update: updates done by each seed.
      env_steps: live steps done by each seed.
      wall_seconds: since training began, compilation left out.
      env_steps_per_second: of all seeds together since the row before, evaluation included.
      metrics: each metric's value per seed; NaN where there is none, such as a return before an episode has ended.
    """

    index: int
    update: list[int]
    env_steps: list[int]
    wall_seconds: float
    env_steps_per_second: float
    metrics: dict[str, list[float]]

    def mean(self, name: str) -> float:
        """A metric's mean over the seeds that have a value; NaN where none has, or the metric is unknown."""
        return float(mean_of_known(self.metrics.get(name, [np.nan])))

    @property
    def mean_steps(self) -> int:
        """Live steps per seed, rounded down."""
        return sum(self.env_steps) // len(self.env_steps)


@dataclasses.dataclass(frozen=True)
class Counters:
    """How far every seed is, read from a train state; one value per seed in each list.

    Attributes:
      update: updates done.
      env_steps: live steps done, exact.
      diverged_at: the update that was not finite and at which the seed was frozen, or -1.
      cause: what was not finite in it, as bits; see `haepo_jax.algorithms.base.CAUSES`.
      skipped: updates dropped because they were not finite.
      invalid_episodes: episodes left out because the environment gave an observation or reward that was not finite.
    """

    update: list[int]
    env_steps: list[int]
    diverged_at: list[int]
    cause: list[int]
    skipped: list[int]
    invalid_episodes: list[int]

    @classmethod
    def read(cls, state: TrainState) -> Counters:
        """Waits for the device."""
        health = state.health
        values = (
            state.update,
            state.env_steps.to_int(),
            health.diverged_at,
            health.cause,
            health.skipped,
            health.invalid_episodes,
        )
        return cls(*(np.atleast_1d(np.asarray(value)).tolist() for value in values))

    @property
    def behind(self) -> int | None:
        """The steps of the seed that is least far among those that still run; None where all are frozen."""
        return min((steps for steps, at in zip(self.env_steps, self.diverged_at, strict=True) if at < 0), default=None)

    def before(self, until: int) -> bool:
        """Whether a seed that still runs has fewer than `until` steps."""
        return self.behind is not None and self.behind < until

    def divergences(self, first_seed: int) -> list[dict[str, Any]]:
        """Each frozen seed, the update that was not finite and what in it."""
        return [
            {"seed": first_seed + lane, "update": at, "not_finite": _not_finite(cause)}
            for lane, (at, cause) in enumerate(zip(self.diverged_at, self.cause, strict=True))
            if at >= 0
        ]


def _not_finite(cause: int) -> list[str]:
    return [name for bit, name in enumerate(CAUSES) if cause >> bit & 1]


@dataclasses.dataclass
class Position:
    """Where the loop stands between two compiled calls, beside the train state; a checkpoint holds it as JSON.

    Attributes:
      rows: logged so far.
      until: live steps at which the row under way ends, or None between two rows.
      steps: live steps of all seeds together.
      logged_steps: the same, when the last row was logged.
      metrics: of each seed's last update.
      best_return: of the rows so far.
      run_seconds: from the first update to here, in all processes, without what a process did after its last
        checkpoint; likewise train_seconds, eval_seconds and checkpoint_seconds, which are parts of it.
      compile_seconds: in all processes.
      resumed_from: live steps per seed at which the run was resumed.
    """

    rows: int = 0
    until: int | None = None
    steps: int = 0
    logged_steps: int = 0
    metrics: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    best_return: float | None = None
    run_seconds: float = 0.0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    compile_seconds: float = 0.0
    resumed_from: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What is known of a run before it starts.

    Attributes:
      rows: logged by the part of the run that it goes on with; 0 for a new run.
      logged_steps: live steps per seed of the last of those.
      resumed_from: live steps per seed done by that part; None where the run is new, 0 where it had no checkpoint yet.
    """

    config: RunConfig
    directory: Path
    device: str
    fallback: str | None
    rows: int = 0
    logged_steps: int = -1
    resumed_from: int | None = None

    @property
    def resumed(self) -> bool:
        return self.resumed_from is not None


class Observer:
    """What watches a run: loggers, the progress display, checkpoints. Every method may be left out.

    They are called in the order in which they were given. `on_slice` comes after every compiled call and may raise to
    end the run; it and `on_state` see the train state, whose buffers are donated to the next call: copy what must stay.
    """

    def on_start(self, info: RunInfo) -> None:
        """Before anything is compiled."""

    def on_compiled(self, seconds: float) -> None:
        """After compilation, before the first step."""

    def on_slice(self, state: TrainState, env_steps: list[int]) -> None:
        """After every compiled call; `env_steps` per seed."""

    def on_row(self, row: Row) -> None:
        """After every logged update."""

    def on_state(self, row: Row, state: TrainState) -> None:
        """After `on_row`: the state behind the row; copy what must stay."""

    def on_warning(self, text: str) -> None:
        """Something that the user should know of, and that does not end the run; one line."""

    def on_end(self, summary: dict[str, Any]) -> None:
        """After the final evaluation."""

    def close(self) -> None:
        """Last, whether the run came to its end or not."""


class Program:
    """An algorithm over the seeds of one run, compiled ahead of time so that compilation is timed apart.

    With several seeds every function is vmapped over them. Whatever it returns, on the host every array has seeds as
    its first axis, one seed included.

    With a mesh the environments are shared out over its devices within a compiled call. Between two of them every
    device holds the whole train state, environments in mid-episode included, so that one process can write it down.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        *,
        seed: int,
        num_seeds: int,
        final_eval_episodes: int,
        mesh: Mesh | None = None,
        start: Start | None = None,
    ) -> None:
        begin = time.perf_counter()
        self.algorithm = algorithm
        self.first_seed = seed
        self.num_seeds = num_seeds
        # Seed s is the same run alone and as a lane of many, so each lane's key is made from its own number.
        self._keys = jax.random.key(seed)
        if num_seeds > 1:
            self._keys = jax.vmap(jax.random.key)(np.arange(seed, seed + num_seeds, dtype=np.uint32))

        def final_evaluation(state: TrainState) -> dict[str, Any]:
            sampled = algorithm.evaluate(state, episodes=final_eval_episodes)
            greedy = algorithm.evaluate(state, episodes=final_eval_episodes, greedy=True)
            return {"return": sampled["return"], "length": sampled["length"], "return_greedy": greedy["return"]}

        over_seeds = self._over_seeds
        placed: dict[str, Any] = {}
        if mesh is not None:
            placed = dict.fromkeys(("in_shardings", "out_shardings"), sharding.whole(mesh))
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            self._init_from = (self._keys,) if start is None else (self._keys, start)
            axes = (0,) if start is None else (0, None)
            init = jax.jit(over_seeds(algorithm.init, axes), **placed).lower(*self._init_from)
            state, count = init.out_info, jax.eval_shape(lambda: StepCount.of(0))
            lowered = {
                "init": init,
                "advance": jax.jit(over_seeds(algorithm.advance, (0, None)), donate_argnums=0, **placed).lower(
                    state, count
                ),
                "final": jax.jit(over_seeds(final_evaluation, 0), **placed).lower(state),
            }
            if algorithm.eval_episodes:
                lowered["progress"] = jax.jit(over_seeds(algorithm.progress, 0), **placed).lower(state)
            self._place = jax.jit(lambda state: state, **placed)
        self._state = state
        # XLA lets go of Python's lock while it compiles. What is needed at the end only need not be waited for.
        pool = ThreadPoolExecutor(len(lowered))
        compiling = {name: pool.submit(program.compile) for name, program in lowered.items()}
        pool.shutdown(wait=False)
        self._final_evaluation = compiling.pop("final")
        compiled = {name: program.result() for name, program in compiling.items()}
        self._init, self._advance, self._progress = compiled["init"], compiled["advance"], compiled.get("progress")
        self.compile_seconds = time.perf_counter() - begin

    def _over_seeds(self, function: Any, in_axes: Any) -> Any:
        return jax.vmap(function, in_axes=in_axes) if self.num_seeds > 1 else function

    def _per_seed(self, values: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        host = jax.device_get(values)
        return {name: np.asarray(v) if self.num_seeds > 1 else np.asarray(v)[None] for name, v in host.items()}

    def init(self) -> TrainState:
        """The train state before the first update."""
        state: TrainState = self._init(*self._init_from)
        return state

    def restore(self, checkpoint: Checkpoint | None, processes: Processes) -> TrainState:
        """The train state that a checkpoint, verified before, holds; it is the first process's, and None elsewhere.
        Raises CheckpointError."""

        def read() -> dict[str, np.ndarray[Any, Any]]:
            assert checkpoint is not None
            return to_arrays(checkpoint.restore(self._state))

        state: TrainState = self._place(from_arrays(processes.of_first(read), self._state))
        return state

    def advance(self, state: TrainState, until: int) -> tuple[TrainState, dict[str, np.ndarray[Any, Any]]]:
        """Trains every seed up to `until` live steps; uses up `state`. Waits, so that it can be timed."""
        state, metrics = self._advance(state, StepCount.of(until))
        return state, self._per_seed(metrics)

    def evaluate(self, state: TrainState) -> dict[str, np.ndarray[Any, Any]]:
        """The evaluation that belongs to a row, per seed; empty where `eval_episodes` is 0."""
        if self._progress is None:
            return {}
        row = self._progress(state)
        return self._per_seed({name: value for name, value in row.items() if name.startswith("eval_")})

    def final_evaluation(self, state: TrainState) -> dict[str, np.ndarray[Any, Any]]:
        """`return`, `length` (sampled actions) and `return_greedy` of the final policy: (seeds, episodes) each."""
        return self._per_seed(self._final_evaluation.result()(state))


def build(config: RunConfig, env: Any = None) -> Algorithm:
    """The algorithm of a run on its environment, or on one that is at hand; raises ConfigError where they do not fit."""
    try:
        env = haepo_jax.make_env(config.env, **config.env_kwargs) if env is None else env
        algorithm: Algorithm = getattr(haepo_jax, config.algo.class_name)(
            env, total_steps=config.total_steps, **config.algo.hyperparameters
        )
    except Exception as error:  # an environment answers a setting that it cannot use with whatever it likes
        detail = f" with env_kwargs {short(config.env_kwargs, 200)}" if config.env_kwargs else ""
        reason = str(error) or type(error).__name__
        raise ConfigError(one_line(f"cannot set up {config.algo.name} on {config.env}{detail}: {reason}")) from error
    return algorithm


def start_of(config: RunConfig, algorithm: Algorithm) -> Start | None:
    """What a run starts from where it has `init_from`, on the host; raises ConfigError where that does not fit."""
    if config.init_from is None:
        return None
    from haepo_jax.loading import load  # which builds algorithms as this module does

    try:
        start = load(config.init_from)[1].start
        jax.eval_shape(algorithm.init, jax.random.key(0), start)
    except (CheckpointError, ValueError) as error:  # a ConfigError of the other run among them
        raise ConfigError(f"init_from={short(config.init_from)}: {error}") from None
    host: Start = jax.device_get(start)
    return host


def mesh_of(config: RunConfig, algorithm: Algorithm) -> Mesh | None:
    """The devices over which a run shares out its environments, if it does; raises ConfigError where it cannot."""
    if config.shard == "none":
        return None
    try:
        hyperparameters.check_divides("algo.num_envs", algorithm.num_envs, "the number of devices", jax.device_count())
    except hyperparameters.HyperparameterError as error:
        raise ConfigError(f"shard=environments: {error}") from None
    with sharding.over_environments() as mesh:
        return mesh


def run(
    config: RunConfig,
    directory: Path,
    observers: Sequence[Observer],
    *,
    saver: Saver | None = None,
    resumed: bool = False,
    checkpoint: Checkpoint | None = None,
    stop: Callable[[], int | None] = lambda: None,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Trains as configured and returns the run's summary; what is written is up to the observers and the saver.

    Args:
      config: the settings.
      directory: of the run, named in what is shown.
      observers: see `Observer`.
      saver: writes checkpoints; None: there are none.
      resumed: whether this goes on with a run.
      checkpoint: to go on from, verified; None: from the beginning.
      stop: asked after every compiled call for the number of a signal that wants the run to end.
      processes: that have a share in the run; saver and checkpoint are the first one's.

    Raises:
      ConfigError: where the environment or algorithm cannot be built.
      RunError: where the device runs out of memory, or a checkpoint cannot be written or read.
      Interrupted: where `stop` gave a signal, after a last checkpoint.
      OSError: where an observer cannot write.
    """
    start = time.perf_counter()
    processes = processes or Processes()
    with contextlib.ExitStack() as stack:
        for observer in observers:
            stack.callback(observer.close)
        if saver is not None:
            stack.callback(saver.close)
        device, fallback = describe_device()
        algorithm = build(config)
        mesh = mesh_of(config, algorithm)
        about = {
            "settings": settings_that_matter(config),
            "versions": {name: _version(name) for name in PACKAGES},
            "device": device,
        }
        earlier, position = processes.of_first(lambda: _read_position(checkpoint))
        start_from = processes.of_first(lambda: start_of(config, algorithm) if checkpoint is None else None)
        seeds = config.num_seeds
        info = RunInfo(
            config, directory, device, fallback, position.rows,
            position.logged_steps // seeds if position.rows else -1,
            position.steps // seeds if resumed else None,
        )  # fmt: skip
        for observer in observers:
            observer.on_start(info)
        if earlier is not None and any(earlier.get(key) != about[key] for key in ("versions", "device")):
            text = (
                "the run so far was made on another device or by other versions: it does not go on bit for bit as there"
            )
            for observer in observers:
                observer.on_warning(text)
        if saver is not None:
            saver.prepare()
        processes.meet()
        with device_errors("take fewer seeds or environments"):
            program = Program(
                algorithm,
                seed=config.seed,
                num_seeds=config.num_seeds,
                final_eval_episodes=config.final_eval_episodes,
                mesh=mesh,
                start=start_from,
            )
            state = program.init() if earlier is None else program.restore(checkpoint, processes)
            for observer in observers:
                observer.on_compiled(program.compile_seconds)
            position.compile_seconds += program.compile_seconds
            if earlier is not None:
                position.resumed_from.append(position.steps // config.num_seeds)
            wall_before = position.run_seconds + position.compile_seconds - program.compile_seconds
            training = _Training(program, observers, saver, stop, processes, position, state, config.env)
            if saver is not None:
                saved = None if checkpoint is None else training.mark
                saver.start(position.steps // seeds, best_return=position.best_return, saved=saved, about=about)
            processes.meet()
            results = training.run()
        summary = {
            "env": config.env,
            "algo": config.algo.name,
            "seeds": list(range(config.seed, config.seed + config.num_seeds)),
            **results,
            "wall_seconds": wall_before + time.perf_counter() - start,
            "compile_seconds": position.compile_seconds,
            "resumed_from": position.resumed_from,
            "device": device,
            "device_fallback": fallback,
            "versions": about["versions"],
            "hyperparameters": config.to_dict()["algo"] | {"total_steps": config.total_steps},
        }
        for observer in observers:
            observer.on_end(summary)
    return summary


def _read_position(checkpoint: Checkpoint | None) -> tuple[dict[str, Any] | None, Position]:
    """What a checkpoint says of the run up to it, and where that run stood."""
    if checkpoint is None:
        return None, Position()
    progress = checkpoint.progress()
    try:
        return progress, Position(**progress["position"])
    except (KeyError, TypeError):
        raise CheckpointError(f"{checkpoint.path}: it was written by another version") from None


class _Training:
    """The loop over rows. Seconds are measured where the host waits for the device, so they are the device's.

    How it is cut into compiled calls, and at which of them it is broken off and resumed, changes no row and no update.
    """

    def __init__(
        self,
        program: Program,
        observers: Sequence[Observer],
        saver: Saver | None,
        stop: Callable[[], int | None],
        processes: Processes,
        position: Position,
        state: TrainState,
        env: str,
    ) -> None:
        self._program, self._observers, self._saver, self._stop = program, observers, saver, stop
        self._processes, self._state, self._env = processes, state, env
        self._at = Counters.read(state)
        self._position = position
        if not position.steps:
            position.steps = position.logged_steps = sum(self._at.env_steps)
        self._before = position.run_seconds, position.checkpoint_seconds
        self._metrics = {name: np.asarray(values) for name, values in position.metrics.items()}
        # The return of the row that was logged at exactly this state.
        self._value: float | None = None
        self._begin = time.perf_counter()

    @property
    def mark(self) -> Any:
        """Of this moment of the run; see `Saver`."""
        return self._position.rows, self._at.update, self._at.diverged_at

    def run(self) -> dict[str, Any]:
        """Trains to the end; returns the loop's part of the summary."""
        program, position = self._program, self._position
        total, points = program.algorithm.total_steps, program.algorithm.log_points
        first_steps, train_before = self._at.behind or 0, position.train_seconds
        row_begin, row_steps = time.perf_counter(), position.steps
        # A run may have been broken off between the last update of a row and the row.
        while position.until is not None or self._at.before(total):
            if position.until is None:
                # The next of the evenly spaced points that not every seed has passed, so an update past several makes
                # one row.
                point = (self._at.behind or 0) * points // total + 1
                position.until = -(-total * point // points)
            while self._at.before(position.until):
                behind = self._at.behind or 0
                end = _slice_end(behind, behind - first_steps, position.train_seconds - train_before)
                self._advance(min(position.until, end))
            position.until = None
            if position.steps == position.logged_steps:  # a seed diverged and no other had to move to reach this point
                continue
            self._log(row_begin, row_steps)
            row_begin, row_steps = time.perf_counter(), position.steps
        run_seconds = self._clock()
        # Written while the policy is evaluated.
        self._save()
        self._processes.meet()

        final_begin = time.perf_counter()
        final = {name: value.astype(np.float64) for name, value in program.final_evaluation(self._state).items()}
        final_seconds = time.perf_counter() - final_begin
        if self._saver is not None:
            self._saver.wait()
        self._leave_if_asked()
        at, position = self._at, self._position
        returns, greedy = final["return"].mean(axis=1), final["return_greedy"].mean(axis=1)
        return {
            "env_steps": sum(at.env_steps) // len(at.env_steps),
            "env_steps_per_seed": at.env_steps,
            "updates": max(at.update),
            "updates_per_seed": at.update,
            "diverged": at.divergences(program.first_seed),
            "skipped_updates_per_seed": at.skipped,
            "invalid_episodes_per_seed": at.invalid_episodes,
            "final_return_mean": float(returns.mean()),
            "final_return_iqm": float(interquartile_mean(returns)),
            "final_return_per_seed": returns.tolist(),
            "final_return_greedy_mean": float(greedy.mean()),
            "final_return_greedy_per_seed": greedy.tolist(),
            "final_length_mean": float(final["length"].mean()),
            "final_eval_episodes": final["return"].shape[1],
            "run_seconds": run_seconds,
            "train_seconds": position.train_seconds,
            "eval_seconds": position.eval_seconds,
            "final_eval_seconds": final_seconds,
            "eval_share": position.eval_seconds / run_seconds,
            "checkpoint_seconds": position.checkpoint_seconds,
            "checkpoint_share": position.checkpoint_seconds / run_seconds,
            "env_steps_per_second": sum(at.env_steps) / run_seconds,
        }

    def _advance(self, until: int) -> None:
        """One compiled call, and a checkpoint where one is due."""
        begin = time.perf_counter()
        self._state, latest = self._program.advance(self._state, until)
        before, self._at = self._at, Counters.read(self._state)
        advanced = np.array(self._at.update) > np.array(before.update)
        self._metrics = {
            name: np.where(advanced, value, self._metrics.get(name, value)) for name, value in latest.items()
        }
        position = self._position
        position.steps, self._value = sum(self._at.env_steps), None
        position.train_seconds += time.perf_counter() - begin
        for observer in self._observers:
            observer.on_slice(self._state, self._at.env_steps)
        self._warn(before)
        if self._saver is not None and self._saver.due(position.steps // self._program.num_seeds):
            self._save()
        self._leave_if_asked()

    def _log(self, row_begin: float, row_steps: int) -> None:
        """A row: an evaluation, and what the last update of each seed said."""
        begin = time.perf_counter()
        evaluation = self._program.evaluate(self._state)
        now, at, position = time.perf_counter(), self._at, self._position
        position.eval_seconds += now - begin
        metrics = self._metrics | evaluation
        if getattr(self._program.algorithm, "on_nan", "stop") == "skip":
            metrics["skipped_updates"] = np.array(at.skipped)
        row = Row(
            index=position.rows,
            update=at.update,
            env_steps=at.env_steps,
            wall_seconds=self._clock(),
            env_steps_per_second=(position.steps - row_steps) / (now - row_begin),
            metrics={name: value.astype(np.float64).tolist() for name, value in metrics.items()},
        )
        position.rows, position.logged_steps = position.rows + 1, position.steps
        for observer in self._observers:
            observer.on_row(row)
            observer.on_state(row, sharding.own_copy(self._state))
        self._value = row.mean("eval_return" if "eval_return" in row.metrics else "episode_return")
        if self._saver is not None:
            self._saver.row(sharding.own_copy(self._state), self._value, self.mark, self._snapshot)
        self._processes.meet()

    def _clock(self) -> float:
        """Brings the position's clocks up to now; returns the seconds of the run."""
        run_seconds, checkpoint_seconds = self._before
        self._position.run_seconds = run_seconds + time.perf_counter() - self._begin
        if self._saver is not None:
            self._position.checkpoint_seconds = checkpoint_seconds + self._saver.blocked_seconds
        return self._position.run_seconds

    def _snapshot(self) -> dict[str, Any]:
        self._clock()
        self._position.metrics = {name: value.astype(np.float64).tolist() for name, value in self._metrics.items()}
        if self._saver is not None:
            self._position.best_return = self._saver.best_return
        return dataclasses.asdict(self._position)

    def _save(self) -> None:
        if self._saver is not None:
            steps = self._position.steps // self._program.num_seeds
            self._saver.save(sharding.own_copy(self._state), steps, self.mark, self._value, self._snapshot())
            self._clock()

    def _leave_if_asked(self) -> None:
        # The first process's clock is everyone's, so that all come to the same end of the next call.
        signum, self._position.train_seconds = self._processes.meet(self._stop() or 0, self._position.train_seconds)
        if signum:
            self._save()
            if self._saver is not None:
                self._saver.wait()
            raise Interrupted(signum, f"interrupted at {self._position.steps // self._program.num_seeds:,} steps")

    def _warn(self, before: Counters) -> None:
        """Tells of what went wrong since `before`: each frozen seed, and the first update and episode left out."""
        at, texts = self._at, []
        new = [
            seed
            for seed in at.divergences(self._program.first_seed)
            if seed not in before.divergences(self._program.first_seed)
        ]
        if at.behind is not None:
            texts += [
                f"seed {seed['seed']} diverged: not finite in update {seed['update']}: {', '.join(seed['not_finite'])}"
                "; it stays as it was before, the others go on"
                for seed in new
            ]
        if sum(at.skipped) and not sum(before.skipped):
            what = sorted({name for cause in at.cause for name in _not_finite(cause)}, key=CAUSES.index)
            texts.append(
                f"an update is not finite ({', '.join(what)}) and is dropped; algo.on_nan=skip counts such updates"
            )
        if sum(at.invalid_episodes) and not sum(before.invalid_episodes):
            texts.append(
                f"{self._env} gave an observation or reward that is not finite; such episodes are left out and counted"
            )
        for observer in self._observers:
            for text in texts:
                observer.on_warning(text)


def _slice_end(done: int, gained: int, seconds: float) -> int:
    """Where to stop the next compiled call so that it takes about SLICE_SECONDS, judged by `gained` steps in `seconds`.

    How a run is cut changes no result, so this may depend on the clock. The first call makes one update.
    """
    return done + max(1, int(gained / seconds * SLICE_SECONDS) if seconds else 1)


@contextlib.contextmanager
def device_errors(advice: str) -> Iterator[None]:
    """A device that is out of memory ends a run in one line, with advice; raises DeviceError."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        detail = one_line(str(error), 160)
        raise DeviceError(f"the device is out of memory: {advice} ({detail})") from None


def describe_device(*, local: bool = False) -> tuple[str, str | None]:
    """The devices jax computes on, of all hosts or of this one, such as `cpu` or `8 x gpu (NVIDIA H200)`; and, where jax
    has fallen back to the CPU although there is an accelerator, a sentence that says so. Raises ConfigError where jax
    finds no device."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            devices = jax.local_devices() if local else jax.devices()
    except RuntimeError as error:
        raise ConfigError(f"jax finds no device to run on: {one_line(str(error), 200)}") from None
    platform, kind = devices[0].platform, devices[0].device_kind
    text = platform if kind == platform else f"{platform} ({kind})"
    text = f"{len(devices)} x {text}" if len(devices) > 1 else text
    return text, _fallback() if platform == "cpu" and not os.environ.get("JAX_PLATFORMS") else None


def _fallback() -> str | None:
    if any(util.find_spec(plugin) for plugin in ACCELERATOR_PLUGINS):
        return "jax has an accelerator plugin but could not use it, and fell back to the CPU"
    if any(os.path.exists(node) for node in ACCELERATOR_NODES):
        return "this machine has an accelerator but jax is installed without its plugin, and fell back to the CPU"
    return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return haepo_jax.__version__ if package == "haepo_jax" else None
