"""The loop: advances a compiled algorithm row by row over all its seeds and tells observers what happens.

Everything that numerical code needs is built before the first step; the loop itself only moves counters and clocks.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from haepo_jax import sharding
from haepo_jax.algorithms.state import CAUSES, EPISODE_MEANS, TrainState
from haepo_jax.runner.checkpoints import Saver
from haepo_jax.runner.errors import Interrupted
from haepo_jax.runner.evaluation import KINDS
from haepo_jax.runner.observers import Counters, Observer, Row, divergence_text, not_finite
from haepo_jax.runner.processes import Processes
from haepo_jax.runner.program import Program
from haepo_jax.runner.signals import StopSignals, interruptibly
from haepo_jax.runner.statistics import interquartile_mean

T = TypeVar("T")

TELL_AFTER_SECONDS = 3.0
"""An evaluation that takes longer is announced."""

SLICE_SECONDS = 1.0
"""How long one compiled call may be expected to take: between two calls progress is shown and Ctrl-C is heard."""


@dataclasses.dataclass
class LoopState:
    """Where the loop stands between two compiled calls, beside the train state; a checkpoint holds it as JSON.

    Steps are environment steps of all seeds together. Seconds are those of all processes of the run, up to their last
    checkpoint.
    """

    rows: int = 0
    until: int | None = None  # steps of a seed at which the current row ends; None between two rows
    steps: int = 0
    logged_steps: int = 0  # when the last row was logged
    metrics: dict[str, list[float]] = dataclasses.field(default_factory=dict)  # of each seed's last update
    best_return: float | None = None
    eval_steps: int = 0  # about what evaluations at rows have played
    run_seconds: float = 0.0  # from the first update to here; the next three are parts of it
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    compile_seconds: float = 0.0
    resumed_from: list[int] = dataclasses.field(default_factory=list)  # steps per seed
    ended: int | None = None  # the total_steps of the run that an observer has ended here


class Training:
    """The loop over rows. Seconds are measured where the host waits for the device, so they are the device's.

    How it is cut into compiled calls, and at which of them it is broken off and resumed, changes no row and no update.
    """

    def __init__(
        self,
        program: Program,
        observers: Sequence[Observer],
        saver: Saver | None,
        stop: StopSignals,
        processes: Processes,
        position: LoopState,
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

    def run(self) -> tuple[dict[str, Any], TrainState]:
        """Trains to the end; returns the loop's part of the summary, and the final state."""
        program, position = self._program, self._position
        total, points = program.algorithm.total_steps, program.algorithm.log_points
        first_steps, train_before = self._at.behind or 0, position.train_seconds
        row_begin, row_steps = time.perf_counter(), position.steps
        # A run may have been broken off between the last update of a row and the row.
        while position.ended != total and (position.until is not None or self._at.before(total)):
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
        begin = time.perf_counter()
        final = self._listening(lambda: program.final_evaluation(self._state), final=True)
        final_seconds = time.perf_counter() - begin
        if self._saver is not None:
            self._saver.wait()
        self._leave_if_asked()
        return self._results(final, run_seconds, final_seconds), self._state

    def _advance(self, until: int) -> None:
        """One compiled call, and a checkpoint where one is due."""
        begin = time.perf_counter()
        self._state, latest = interruptibly(lambda: self._program.advance(self._state, until))
        before, self._at = self._at, Counters.read(self._state)
        advanced = np.array(self._at.update) > np.array(before.update)
        # A seed's metrics before its first update are 0 on the device, and not known.
        self._metrics = {
            name: np.where(advanced, value, self._metrics.get(name, np.nan)) for name, value in latest.items()
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
        """A row: an evaluation, and what the last update of each seed said. An observer may end the run with it."""
        begin = time.perf_counter()
        metrics = self._metrics | self._evaluate()
        now, at, position = time.perf_counter(), self._at, self._position
        position.eval_seconds += now - begin
        if "episodes" in metrics:
            # A compiled function gives no NaN for the mean of no episodes, so as not to stop `jax_debug_nans`.
            for name in {*EPISODE_MEANS} & {*metrics}:
                metrics[name] = np.where(metrics["episodes"] == 0, np.nan, metrics[name])
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
        total, ended = self._program.algorithm.total_steps, False
        for observer in self._observers:
            observer.on_row(row)
            ended |= bool(observer.on_state(row, sharding.local_copy(self._state)))
        if ended and at.before(total):
            position.ended = total
        self._value = row.mean("eval_return" if "eval_return" in row.metrics else "episode_return")
        if self._saver is not None:
            self._saver.row(sharding.local_copy(self._state), self._value, self.mark, self._snapshot)
        if self._processes.meet(int(position.ended == total))[0]:
            position.ended = total

    def _evaluate(self) -> dict[str, np.ndarray[Any, Any]]:
        """The evaluation at a row. One that would make evaluation longer than the training, counted in environment steps,
        is left out, except at the end of the run."""
        program, position = self._program, self._position
        if position.eval_steps > position.steps and self._at.before(program.algorithm.total_steps):
            return program.not_evaluated()
        values = self._listening(lambda: program.evaluate(self._state), final=False)
        if "eval_length" in values:
            position.eval_steps += int(values["eval_length"].sum()) * program.row_size.episodes * KINDS
        return values

    def _listening(self, function: Callable[[], T], *, final: bool) -> T:
        """An evaluation, which may take long: a signal ends it at once, after a checkpoint."""
        if not self._processes.alone:  # the others would wait for their part of it
            return interruptibly(function)
        begin, told = time.perf_counter(), False

        def poll() -> None:
            nonlocal told
            if not told and time.perf_counter() - begin > TELL_AFTER_SECONDS:
                told = True
                for observer in self._observers:
                    observer.on_evaluation(final)
            self._leave_if_asked()

        return interruptibly(function, poll)

    def _results(
        self, final: dict[str, np.ndarray[Any, Any]], run_seconds: float, final_seconds: float
    ) -> dict[str, Any]:
        """The loop's part of the summary, from the final evaluation (see `Program.final_evaluation`) and the clocks."""
        at, position = self._at, self._position
        returns, greedy, lengths = (_means(final[name]) for name in ("return", "return_greedy", "length"))
        return {
            "env_steps": sum(at.env_steps) // len(at.env_steps),
            "env_steps_per_seed": at.env_steps,
            "updates": max(at.update),
            "updates_per_seed": at.update,
            "ended_early": position.ended == self._program.algorithm.total_steps,
            "diverged": at.divergences(self._program.seeds),
            "skipped_updates_per_seed": at.skipped,
            "invalid_episodes_per_seed": at.invalid_episodes,
            "final_return_mean": float(returns.mean()),
            "final_return_iqm": float(interquartile_mean(returns)),
            "final_return_per_seed": returns.tolist(),
            "final_return_greedy_mean": float(greedy.mean()),
            "final_return_greedy_per_seed": greedy.tolist(),
            "final_length_mean": float(lengths.mean()),
            "final_eval_episodes": final["return"].shape[1],
            "final_eval_max_steps": self._program.final_size.max_steps,
            "eval_episodes": self._program.row_size.episodes,
            "run_seconds": run_seconds,
            "train_seconds": position.train_seconds,
            "eval_seconds": position.eval_seconds,
            "final_eval_seconds": final_seconds,
            "eval_share": position.eval_seconds / run_seconds,
            "checkpoint_seconds": position.checkpoint_seconds,
            "checkpoint_share": position.checkpoint_seconds / run_seconds,
            "env_steps_per_second": sum(at.env_steps) / run_seconds,
        }

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
            self._saver.save(sharding.local_copy(self._state), steps, self.mark, self._value, self._snapshot())
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
        known = before.divergences(self._program.seeds)
        if at.behind is not None:
            new = [seed for seed in at.divergences(self._program.seeds) if seed not in known]
            texts += [f"{divergence_text(seed)}; it stays as it was before, the others continue" for seed in new]
        if sum(at.skipped) and not sum(before.skipped):
            what = sorted({name for cause in at.cause for name in not_finite(cause)}, key=CAUSES.index)
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


def _means(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Of each seed (seeds, episodes); NaN where there are no episodes."""
    return values.mean(axis=1, dtype=np.float64) if values.size else np.full(len(values), np.nan)


def _slice_end(done: int, gained: int, seconds: float) -> int:
    """Where to stop the next compiled call so that it takes about SLICE_SECONDS, judged by `gained` steps in `seconds`. The
    first call makes one update."""
    return done + max(1, int(gained / seconds * SLICE_SECONDS) if seconds else 1)
