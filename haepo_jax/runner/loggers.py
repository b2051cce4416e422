"""Observers that record a run: JSON lines, TensorBoard events, Weights & Biases, the curve and the summary."""

from __future__ import annotations

import contextlib
import math
import shlex
import socket
import sys
import time
import uuid
from collections.abc import Mapping
from importlib import util
from pathlib import Path
from typing import Any

from haepo_jax.algorithms.state import TrainState
from haepo_jax.runner.completions import CompletionLogger
from haepo_jax.runner.config import ConfigError, RunConfig
from haepo_jax.runner.observers import Observer, Row, RunInfo
from haepo_jax.runner.run_dir import RunDir, append_record, json_text, keep_rows, write_atomically


def check_loggers(config: RunConfig) -> None:
    """Raises ConfigError for a logger whose package is not installed."""
    if config.wandb and util.find_spec("wandb") is None:
        raise ConfigError("wandb=true needs the package wandb: pip install 'haepo_jax[wandb]'")


def loggers_of(config: RunConfig, directory: RunDir) -> list[Observer]:
    """The loggers that a run's settings ask for; raises ConfigError."""
    check_loggers(config)
    made: list[Observer] = [FileLogger(directory)]
    if config.tensorboard:
        made.append(TensorBoardLogger(directory))
    if config.completions:
        made.append(CompletionLogger(directory, config.completions))
    if config.wandb:
        made.append(WandbLogger(directory))
    return made


def _scalars(row: Row) -> dict[str, float]:
    return {name: v for name, v in row.to_json().items() if isinstance(v, float) and math.isfinite(v)}


class FileLogger(Observer):
    """Writes `config.yaml`, `metrics.jsonl` and, at the end, `summary.json` and `curve.png`.

    A resumed run cuts `metrics.jsonl` down to the rows that its checkpoint knows of, and logs the others again.
    """

    _info: RunInfo

    def __init__(self, directory: RunDir) -> None:
        self._directory = directory

    def on_start(self, info: RunInfo) -> None:
        self._info = info

    def on_compiled(self, seconds: float) -> None:
        # Not before: a run that cannot be compiled should not occupy its directory.
        self._directory.summary.unlink(missing_ok=True)
        self._directory.write_settings(self._info.config.to_dict())
        keep_rows(self._directory.metrics, lambda row: row["row"] < self._info.rows)

    def on_row(self, row: Row, state: TrainState) -> None:
        append_record(self._directory.metrics, json_text(row.to_json()) + "\n")

    def on_end(self, summary: dict[str, Any]) -> None:
        summary = summary | {"command": shlex.join(sys.orig_argv)}
        write_curve(self._directory, summary)
        write_atomically(self._directory.summary, json_text(summary, indent=2) + "\n")


def write_curve(directory: RunDir, summary: dict[str, Any]) -> None:
    """Draws `curve.png`, unless the run has diverged before its first row."""
    from haepo_jax.runner.plots import curves_figure, figure_png, read_curve

    with contextlib.suppress(ConfigError):
        curve = read_curve(directory, label=summary["algo"])
        figure = curves_figure([curve], title=f"{summary['algo']} on {summary['env']}")
        write_atomically(directory.curve, figure_png(figure))


class EventFile:
    """A further file of TensorBoard events in a directory, each of which is written at once. What earlier files say of its
    first step and later ones, before a run was resumed, TensorBoard is told to forget.

    The writer is tensorboardX's `RecordWriter`, because the thread of its `SummaryWriter` dies on a full disk and blocks
    whoever waits.
    """

    def __init__(self, directory: Path) -> None:
        from tensorboardX.record_writer import RecordWriter

        # TensorBoard reads the files of a directory in the order of their names.
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{time.time_ns()}"
        self._records = RecordWriter(str(directory / name))
        self._write(file_version="brain.Event:2")
        self._begun = False

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars by their tags; raises OSError."""
        from tensorboardX.proto.event_pb2 import SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        if not self._begun:
            self._write(step=step, session_log=SessionLog(status=SessionLog.START))
            self._begun = True
        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(step=step, summary=Summary(value=scalars))

    def _write(self, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **content).SerializeToString())
        self._records.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a full disk has been reported when the event was written
            self._records.close()


class TensorBoardLogger(Observer):
    """Writes every metric's mean as TensorBoard events in the run's directory, over environment steps."""

    _events: EventFile | None = None

    def __init__(self, directory: RunDir) -> None:
        self._directory = directory

    def on_compiled(self, seconds: float) -> None:
        self._events = EventFile(self._directory.path)

    def on_row(self, row: Row, state: TrainState) -> None:
        assert self._events is not None
        self._events.add(row.mean_steps, {_tag(name): value for name, value in _scalars(row).items()})

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


def _tag(name: str) -> str:
    """A metric's name under its group in TensorBoard."""
    if name in ("wall_seconds", "env_steps_per_second"):
        return f"time/{name}"
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"


class WandbLogger(Observer):
    """Logs every metric's mean to Weights & Biases; project and mode come from its own environment variables."""

    _run: Any = None

    def __init__(self, directory: RunDir) -> None:
        self._directory = directory

    def on_start(self, info: RunInfo) -> None:
        import wandb

        # A resumed run is the same run there, too.
        path, file = self._directory.path, self._directory.path / "wandb_id"
        if not file.exists():
            write_atomically(file, uuid.uuid4().hex[:12])
        name = file.read_text().strip()
        self._run = wandb.init(dir=str(path), config=info.config.to_dict(), name=path.name, id=name, resume="allow")

    def on_row(self, row: Row, state: TrainState) -> None:
        self._run.log(_scalars(row), step=row.mean_steps)

    def on_end(self, summary: dict[str, Any]) -> None:
        self._run.summary.update(summary)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
