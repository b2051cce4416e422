"""What a run shows while it works: a live line on a terminal, at most about twenty plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from haepo_jax.messages import duration, number
from haepo_jax.runner.observers import Observer, Row, RunInfo, divergence_text

if TYPE_CHECKING:
    from haepo_jax.algorithms.state import TrainState

PLAIN_LINES = 20


def live_line(stream: TextIO, task: str, total: float, status: str = "") -> Any:
    """A line of rich's that has begun to show one task, `task_ids[0]`, with a `status`; `stop` takes it away."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    first, last = TextColumn("{task.description}"), TextColumn("{task.fields[status]}")
    columns = (first, BarColumn(bar_width=20), TaskProgressColumn(), last)
    line = Progress(*columns, console=Console(file=stream), transient=True)
    line.add_task(task, total=total, status=status)
    line.start()
    return line


class Progress(Observer):
    """The first line names the device, the last ones the return and the directory."""

    _info: RunInfo
    _live: Any = None
    _row: Row | None = None
    _return = math.nan
    _printed = 0

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def on_start(self, info: RunInfo) -> None:
        import jax

        self._info, config, total = info, info.config, info.config.total_steps
        seeds = f"{config.num_seeds} seeds, " if config.num_seeds > 1 else ""
        self._print(f"training {config.algo.name} on {config.env}, {seeds}on {info.device} (JAX {jax.__version__})")
        if info.resumed_from is not None:
            self._printed = info.resumed_from * PLAIN_LINES // total
            place = f"at {info.resumed_from:,} of {total:,} steps"
            self._print(f"resuming {place if info.resumed_from else 'from the beginning: no checkpoint yet'}")
        if self._stream.isatty():
            self._live = live_line(self._stream, "compiling", total)

    def on_compiled(self, seconds: float) -> None:
        self._begin = time.perf_counter()
        if self._live is None:
            self._print(f"compiled in {seconds:.1f}s")

    def on_slice(self, state: TrainState, env_steps: list[int]) -> None:
        if self._live is not None:
            done = min(self._info.config.total_steps, sum(env_steps) // len(env_steps))
            status = self._status(env_steps)
            self._live.update(self._live.task_ids[0], description="training", completed=done, status=status)

    def on_row(self, row: Row, state: TrainState) -> None:
        self._row, value = row, row.mean_return
        if math.isfinite(value) or "eval_return" not in row.metrics:  # not every row is evaluated
            self._return = value
        self.on_slice(state, row.env_steps)
        line = row.mean_steps * PLAIN_LINES // self._info.config.total_steps
        if self._live is None and line > self._printed:
            self._printed = line
            self._print(self._status(row.env_steps))

    def _status(self, env_steps: list[int]) -> str:
        elapsed, total, seeds = time.perf_counter() - self._begin, self._info.config.total_steps, len(env_steps)
        before = self._info.resumed_from or 0
        # The share done is of one seed, the speed of all of them.
        each, of_all = (" per seed", f" over {seeds} seeds") if seeds > 1 else ("", "")
        speed = (sum(env_steps) - before * seeds) / elapsed
        parts = [f"{sum(env_steps) // seeds:,}/{total:,} steps{each}", f"{speed:,.0f} steps/s{of_all}"]
        if self._row is not None:
            parts.append(f"return {number(self._return)}")
            if "ess" in self._row.metrics:
                parts.append(f"ESS {self._row.mean('ess'):.2f}")
        left = max(0, total - min(env_steps)) * elapsed / max(1, min(env_steps) - before)
        return "  ".join([*parts, f"{duration(left)} left"])

    def on_evaluation(self, final: bool) -> None:
        if self._live is not None:
            self._live.update(self._live.task_ids[0], description="evaluating")
        elif final:
            self._print("evaluating the final policy")

    def on_warning(self, text: str) -> None:
        if self._live is None:
            print(f"warning: {text}", file=sys.stderr, flush=True)
        else:
            self._live.console.print(f"warning: {text}", markup=False, highlight=False, soft_wrap=True)

    def on_end(self, summary: dict[str, Any]) -> None:
        self.close()
        per_seed = summary["final_return_per_seed"]
        several = len(per_seed) > 1
        if summary["final_eval_episodes"]:
            spread = f" (seeds {number(min(per_seed))} to {number(max(per_seed))})" if several else ""
            greedy = number(summary["final_return_greedy_mean"])
            count = summary["final_eval_episodes"]
            episodes = f"{count} episode{'s' * (count != 1)}{' per seed' * several}"
            if limit := summary["final_eval_max_steps"]:
                episodes += f" of at most {limit:,} steps"
            mean = number(summary["final_return_mean"])
            self._print(f"final return {mean}{spread}, greedy {greedy}, over {episodes}")
        if summary["ended_early"]:
            total = self._info.config.total_steps
            self._print(f"a callback ended the run at {summary['env_steps']:,} of {total:,} steps")
        for seed in summary["diverged"]:
            self._print(f"{divergence_text(seed)}; it stayed as it was before")
        self._print(
            f"{sum(summary['env_steps_per_seed']):,} steps in {duration(summary['wall_seconds'])}: compilation "
            f"{summary['compile_seconds']:.1f}s, then {summary['env_steps_per_second']:,.0f} steps/s, "
            f"{summary['eval_share']:.0%} of the time in evaluation"
        )
        if self._info.directory is not None:
            self._print(f"results in {self._info.directory}")

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
