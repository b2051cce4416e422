"""One run, from its settings to its summary: compiled calls in turns with evaluations, rows and checkpoints.

Everything that numerical code needs is built before the first step; the loop itself only moves counters and clocks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from haepo_jax import sharding
from haepo_jax.algorithms.base import Algorithm
from haepo_jax.algorithms.state import CAUSES, EPISODE_MEANS, TrainState
from haepo_jax.runner.checkpoints import Checkpoint, Saver
from haepo_jax.runner.config import RunConfig
from haepo_jax.runner.devices import describe_device, device_errors, versions
from haepo_jax.runner.errors import Interrupted
from haepo_jax.runner.loading import TrainedPolicy, start_of
from haepo_jax.runner.observers import Observer, Row, RunInfo, divergence_text
from haepo_jax.runner.program import SAMPLED_AND_GREEDY, Program, build, final_size, mesh_of
from haepo_jax.runner.signals import StopSignals, interruptibly
from haepo_jax.statistics import interquartile_mean

T = TypeVar("T")

SLICE_SECONDS = 1.0
"""How long one compiled call may be expected to take: between two calls progress is shown and Ctrl-C is heard."""


def run(
    config: RunConfig,
    directory: Path | None,
    observers: Sequence[Observer],
    *,
    algorithm: Algorithm | None = None,
    saver: Saver | None = None,
    resumed: bool = False,
    checkpoint: Checkpoint | None = None,
    stop: StopSignals | None = None,
    start: TrainedPolicy | None = None,
) -> tuple[dict[str, Any], TrainState]:
    """Trains as configured; returns the summary and the final train state, of several seeds with a leading axis.

    What is written is up to the observers and the saver. A verified `checkpoint` is resumed from; `algorithm` and `start`
    stand in for what the settings describe.

    Raises:
      ConfigError: the environment or algorithm cannot be built.
      RunError: the device runs out of memory, or a checkpoint cannot be written or read.
      Interrupted: `stop` gave a signal; there is a last checkpoint.
      OSError: an observer cannot write.
    """
    begun, saver = time.perf_counter(), saver or Saver(None)
    stop = stop or StopSignals(lambda: None)  # never entered: no signal stops the run
    with contextlib.ExitStack() as stack:
        for close in [*(observer.close for observer in observers), saver.close]:
            stack.callback(close)
        device = describe_device()
        algorithm = build(config) if algorithm is None else algorithm
        mesh = mesh_of(config, algorithm)
        about = {"device": device, "versions": versions()}
        earlier = checkpoint.progress() if checkpoint else {}
        position = LoopState(**earlier.get("position", {}))
        initial = None if checkpoint else start_of(config, algorithm, start)
        steps = position.steps // config.num_seeds
        info = RunInfo(config, algorithm, directory, device, position.rows, steps if resumed else None)
        for observer in observers:
            observer.on_start(info)
            if earlier and any(earlier[key] != about[key] for key in about):
                observer.on_warning(
                    "the run so far was made on another device or by other versions: it will not continue bit for bit"
                )
        with device_errors("take fewer seeds or environments"):
            final = final_size(config.final_eval_episodes, algorithm)
            program = Program(algorithm, seeds=config.seed_numbers, final=final, mesh=mesh, start=initial)
            state = program.restore(checkpoint) if checkpoint else program.init()
            stop.begin()  # first, so that whoever reads that training has begun may interrupt it
            for observer in observers:
                observer.on_compiled(program.compile_seconds)
            wall_before = position.run_seconds + position.compile_seconds
            position.compile_seconds += program.compile_seconds
            position.resumed_from += [steps] if earlier else []
            loop = _Loop(program, observers, saver, stop, position, state, about, config.env)
            saver.start(earlier.get("moment"))
            results = loop.run()
        summary = {
            "env": config.env,
            "algo": config.algo.name,
            "seeds": config.seed_numbers,
            **results,
            "wall_seconds": wall_before + time.perf_counter() - begun,
            "compile_seconds": position.compile_seconds,
            "resumed_from": position.resumed_from,
            **about,
            "hyperparameters": config.to_dict()["algo"] | {"total_steps": config.total_steps},
        }
        for observer in observers:
            observer.on_end(summary)
    return summary, loop.state


@dataclasses.dataclass
class LoopState:
    """Where the loop stands between two compiled calls, beside the train state; a checkpoint holds it as JSON.

    Steps are environment steps of all seeds together. A resumed run adds to the seconds up to its checkpoint.
    """

    rows: int = 0
    until: int | None = None  # steps of a seed at which the current row ends; None between two rows
    steps: int = 0
    logged_steps: int = 0  # when the last row was logged
    metrics: dict[str, list[float]] = dataclasses.field(default_factory=dict)  # of each seed's last update
    best_return: float | None = None  # the highest of a row
    eval_steps: int = 0  # about what evaluations at rows have played
    run_seconds: float = 0.0  # from the first update to here; the next three are parts of it
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    checkpoint_seconds: float = 0.0  # how long the loop has waited for checkpoints: copies, not writes
    compile_seconds: float = 0.0
    resumed_from: list[int] = dataclasses.field(default_factory=list)  # steps per seed
    ended: int | None = None  # the total_steps of the run that an observer has ended here


@dataclasses.dataclass(frozen=True)
class Counters:
    """How far every seed is, read from a train state; one value per seed in each list (see `TrainState`, `TrainingStatus`)."""

    update: list[int]
    env_steps: list[int]
    diverged_at: list[int]
    cause: list[int]
    skipped: list[int]
    invalid_episodes: list[int]

    @classmethod
    def read(cls, state: TrainState) -> Counters:
        """Waits for the device."""
        counts = {"update": state.update, "env_steps": state.env_steps.to_int(), **vars(state.status)}
        return cls(**{name: np.atleast_1d(np.asarray(value)).tolist() for name, value in counts.items()})

    @property
    def behind(self) -> int | None:
        """The steps of the seed that is least far among those that still run; None where all are frozen."""
        return min((steps for steps, at in zip(self.env_steps, self.diverged_at, strict=True) if at < 0), default=None)

    def unfinished(self, until: int) -> bool:
        """Whether a seed that still runs has fewer than `until` steps."""
        return self.behind is not None and self.behind < until

    def divergences(self, seeds: Sequence[int]) -> list[dict[str, Any]]:
        """Each frozen seed, the update that was not finite and what in it."""
        return [
            {"seed": seed, "update": at, "not_finite": _not_finite(cause)}
            for seed, at, cause in zip(seeds, self.diverged_at, self.cause, strict=True)
            if at >= 0
        ]


def _not_finite(cause: int) -> list[str]:
    """The names behind the bits of `TrainingStatus.cause`."""
    return [name for bit, name in enumerate(CAUSES) if cause >> bit & 1]


@dataclasses.dataclass
class _Loop:
    """The loop over rows. Seconds are measured where the host waits for the device, so they are the device's.

    How it is cut into compiled calls, and at which of them it is broken off and resumed, changes no row and no update.
    """

    program: Program
    observers: Sequence[Observer]
    saver: Saver
    stop: StopSignals
    position: LoopState
    state: TrainState
    about: dict[str, Any]  # what every checkpoint says of the run
    env: str

    def __post_init__(self) -> None:
        position = self.position
        self._at = Counters.read(self.state)
        if not position.steps:
            position.steps = position.logged_steps = sum(self._at.env_steps)
        self._total: int = self.program.algorithm.total_steps
        # The return of the row that was logged at exactly this state.
        self._return: float | None = None
        self._begin = time.perf_counter() - position.run_seconds
        self._first = self._at.behind or 0, position.train_seconds
        self._last_row = position.run_seconds, position.steps

    def run(self) -> dict[str, Any]:
        """Trains to the end; returns the loop's part of the summary."""
        program, position, points = self.program, self.position, self.program.algorithm.log_points
        # A run may have been broken off between the last update of a row and the row.
        while position.ended != self._total and (position.until is not None or self._at.unfinished(self._total)):
            if position.until is None:
                # The next of the evenly spaced points that not every seed has passed, so an update past several makes
                # one row.
                point = (self._at.behind or 0) * points // self._total + 1
                position.until = -(-self._total * point // points)
            while self._at.unfinished(position.until):
                self._advance(min(position.until, self._slice_end()))
            position.until = None
            # Otherwise a seed diverged and no other had to move to reach this point.
            if position.steps != position.logged_steps:
                self._log()
        run_seconds = self._clock()
        # Written while the policy is evaluated.
        self._save()
        begin = time.perf_counter()
        final = self._evaluate_interruptibly(lambda: program.final_evaluation(self.state), final=True)
        final_seconds = time.perf_counter() - begin
        self.saver.wait()
        self._leave_if_asked()
        return self._results(final, run_seconds, final_seconds)

    def _slice_end(self) -> int:
        """Where the next compiled call ends so that it takes about SLICE_SECONDS, judged by those before; the first call
        makes one update."""
        behind = self._at.behind or 0
        steps, seconds = behind - self._first[0], self.position.train_seconds - self._first[1]
        return behind + max(1, int(steps / seconds * SLICE_SECONDS) if seconds else 1)

    def _advance(self, until: int) -> None:
        """One compiled call, and a checkpoint where one is due."""
        position, before = self.position, self._at
        with self._timed("train_seconds"):
            self.state, latest = interruptibly(lambda: self.program.advance(self.state, until))
            self._at = Counters.read(self.state)
            # A seed's metrics before its first update are 0 on the device, and not known.
            advanced = np.array(self._at.update) > np.array(before.update)
            known = {name: position.metrics.get(name, np.nan) for name in latest}
            position.metrics = {
                name: np.where(advanced, value.astype(np.float64), known[name]).tolist()
                for name, value in latest.items()
            }
        position.steps, self._return = sum(self._at.env_steps), None
        for observer in self.observers:
            observer.on_slice(self.state, self._at.env_steps)
        self._warn(before)
        if self.saver.due():
            self._save()
        self._leave_if_asked()

    def _log(self) -> None:
        """A row: an evaluation, and what the last update of each seed said. An observer may end the run with it."""
        at, position = self._at, self.position
        with self._timed("eval_seconds"):
            evaluation = {name: value.astype(np.float64).tolist() for name, value in self._evaluate().items()}
        metrics = position.metrics | evaluation
        if "episodes" in metrics:
            # A compiled function gives no NaN for the mean of no episodes, so as not to stop `jax_debug_nans`.
            for name in {*EPISODE_MEANS} & {*metrics}:
                metrics[name] = np.where(np.array(metrics["episodes"]) == 0, np.nan, metrics[name]).tolist()
        if self.program.algorithm.on_nan == "skip":
            metrics["skipped_updates"] = [float(count) for count in at.skipped]
        (seconds_before, steps_before), now = self._last_row, self._clock()
        speed = (position.steps - steps_before) / (now - seconds_before)
        row = Row(position.rows, at.update, at.env_steps, now, speed, metrics)
        self._last_row, self._return = (now, position.steps), row.mean_return
        position.rows, position.logged_steps = position.rows + 1, position.steps
        state = sharding.local_copy(self.state)
        ended = [observer.on_row(row, state) for observer in self.observers]
        if any(ended) and at.unfinished(self._total):
            position.ended = self._total
        if self._return > (-np.inf if position.best_return is None else position.best_return):
            position.best_return = self._return
            with self._timed("checkpoint_seconds"):
                self.saver.hold(self.state, self._progress())

    def _evaluate(self) -> dict[str, np.ndarray[Any, Any]]:
        """The evaluation at a row. One that would make evaluation longer than the training, counted in environment steps,
        is left out, except at the end of the run."""
        program, position = self.program, self.position
        if position.eval_steps > position.steps and self._at.unfinished(self._total):
            return program.not_evaluated()
        values = self._evaluate_interruptibly(lambda: program.evaluate(self.state), final=False)
        if "eval_length" in values:
            position.eval_steps += int(values["eval_length"].sum()) * program.row_size.episodes * SAMPLED_AND_GREEDY
        return values

    def _evaluate_interruptibly(self, function: Callable[[], T], *, final: bool) -> T:
        """An evaluation, which may take long: it is announced, and a signal ends it at once, after a checkpoint."""
        size = self.program.final_size if final else self.program.row_size
        for observer in self.observers if size.episodes else ():
            observer.on_evaluation(final)
        return interruptibly(function, self._leave_if_asked)

    def _results(
        self, final: dict[str, np.ndarray[Any, Any]], run_seconds: float, final_seconds: float
    ) -> dict[str, Any]:
        """The loop's part of the summary, from the final evaluation (see `Program.final_evaluation`) and the clocks."""
        at, position, program = self._at, self.position, self.program
        # (seeds, episodes), of which there may be none
        means = {k: v.mean(1, np.float64) if v.size else np.full(len(v), np.nan) for k, v in final.items()}
        return {
            "env_steps": sum(at.env_steps) // len(at.env_steps),
            "env_steps_per_seed": at.env_steps,
            "updates": max(at.update),
            "updates_per_seed": at.update,
            "ended_early": position.ended == self._total,
            "diverged": at.divergences(program.seeds),
            "skipped_updates_per_seed": at.skipped,
            "invalid_episodes_per_seed": at.invalid_episodes,
            "final_return_mean": float(means["return"].mean()),
            "final_return_iqm": float(interquartile_mean(means["return"])),
            "final_return_per_seed": means["return"].tolist(),
            "final_return_greedy_mean": float(means["return_greedy"].mean()),
            "final_return_greedy_per_seed": means["return_greedy"].tolist(),
            "final_length_mean": float(means["length"].mean()),
            "final_eval_episodes": final["return"].shape[1],
            "final_eval_max_steps": program.final_size.max_steps,
            "eval_episodes": program.row_size.episodes,
            "run_seconds": run_seconds,
            "train_seconds": position.train_seconds,
            "eval_seconds": position.eval_seconds,
            "final_eval_seconds": final_seconds,
            "eval_share": position.eval_seconds / run_seconds,
            "checkpoint_seconds": position.checkpoint_seconds,
            "env_steps_per_second": sum(at.env_steps) / run_seconds,
        }

    def _clock(self) -> float:
        """The seconds of the run so far."""
        self.position.run_seconds = time.perf_counter() - self._begin
        return self.position.run_seconds

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """Adds the seconds that pass to one of the position's clocks."""
        begin = time.perf_counter()
        yield
        setattr(self.position, name, getattr(self.position, name) + time.perf_counter() - begin)

    def _progress(self) -> dict[str, Any]:
        """What a checkpoint of this moment says beside the arrays."""
        self._clock()
        moment = [self.position.rows, self._at.update, self._at.diverged_at]  # unlike any other
        return {**self.about, "moment": moment, "return": self._return, "position": dataclasses.asdict(self.position)}

    def _save(self) -> None:
        with self._timed("checkpoint_seconds"):
            self.saver.save(self.state, self._progress())

    def _leave_if_asked(self) -> None:
        if signum := self.stop():
            self._save()
            self.saver.wait()
            raise Interrupted(signum, f"interrupted at {self.position.steps // self.program.num_seeds:,} steps")

    def _warn(self, before: Counters) -> None:
        """Tells of what went wrong since `before`: each frozen seed, and the first update and episode left out."""
        at, texts, seeds = self._at, [], self.program.seeds
        if at.behind is not None:
            new = [seed for seed in at.divergences(seeds) if seed not in before.divergences(seeds)]
            texts += [f"{divergence_text(seed)}; it stays as it was before, the others continue" for seed in new]
        if sum(at.skipped) and not sum(before.skipped):
            what = sorted({name for cause in at.cause for name in _not_finite(cause)}, key=CAUSES.index)
            texts.append(
                f"an update is not finite ({', '.join(what)}) and is dropped; algo.on_nan=skip counts such updates"
            )
        if sum(at.invalid_episodes) and not sum(before.invalid_episodes):
            texts.append(
                f"{self.env} gave an observation or reward that is not finite; such episodes are left out and counted"
            )
        for observer in self.observers:
            for text in texts:
                observer.on_warning(text)
