"""Observers that write a run down: JSON lines, TensorBoard events, Weights & Biases, the curve and the summary."""

from __future__ import annotations

import math
from importlib import util
from typing import IO, Any

from haepo_jax.config import ConfigError, RunConfig
from haepo_jax.training.loop import Observer, Row, RunInfo
from haepo_jax.training.run_dir import RunDir, config_text, json_text, write_atomically


def row_to_json(row: Row) -> dict[str, Any]:
    """A row as `metrics.jsonl` holds it.

    The top level has the mean over the seeds that have a value; `seeds` has every seed's. `update` is that of the
    seed furthest on, `env_steps` the mean rounded down. A value that is missing or not finite is null.
    """
    return {
        "row": row.index,
        "update": max(row.update),
        "env_steps": row.mean_steps,
        "wall_seconds": row.wall_seconds,
        "env_steps_per_second": row.env_steps_per_second,
        **{name: row.mean(name) for name in row.metrics},
        "seeds": {"update": row.update, "env_steps": row.env_steps, **row.metrics},
    }


def _scalars(row: Row) -> dict[str, float]:
    values = row_to_json(row)
    return {name: v for name, v in values.items() if isinstance(v, float) and math.isfinite(v)}


class FileLogger(Observer):
    """Writes `config.yaml`, `metrics.jsonl` and `summary.json`."""

    def __init__(self, directory: RunDir, command: str) -> None:
        self._directory = directory
        self._command = command
        self._config: RunConfig | None = None
        self._metrics: IO[str] | None = None

    def on_start(self, info: RunInfo) -> None:
        self._config = info.config

    def on_compiled(self, seconds: float) -> None:
        # Not before: a run that cannot be compiled should not occupy its directory.
        assert self._config is not None
        write_atomically(self._directory.config, config_text(self._config))
        self._metrics = self._directory.metrics.open("a", encoding="utf-8")

    def on_row(self, row: Row) -> None:
        assert self._metrics is not None
        self._metrics.write(json_text(row_to_json(row)) + "\n")
        self._metrics.flush()

    def on_end(self, summary: dict[str, Any]) -> None:
        write_atomically(self._directory.summary, json_text(summary | {"command": self._command}, indent=2) + "\n")

    def close(self) -> None:
        if self._metrics is not None:
            self._metrics.close()


class TensorBoardLogger(Observer):
    """Writes every metric's mean as TensorBoard events in the run's directory, over live steps."""

    def __init__(self, directory: RunDir) -> None:
        self._directory = directory
        self._writer: Any = None

    def on_compiled(self, seconds: float) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(self._directory.path))

    def on_row(self, row: Row) -> None:
        for name, value in _scalars(row).items():
            self._writer.add_scalar(name, value, row.mean_steps)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WandbLogger(Observer):
    """Logs every metric's mean to Weights & Biases; project and mode come from its own environment variables."""

    def __init__(self, directory: RunDir) -> None:
        if util.find_spec("wandb") is None:
            raise ConfigError("wandb=true needs the package wandb: pip install 'haepo_jax[wandb]'")
        self._directory = directory
        self._run: Any = None

    def on_start(self, info: RunInfo) -> None:
        import wandb

        path = self._directory.path
        self._run = wandb.init(dir=str(path), config=info.config.to_dict(), name=path.name)

    def on_row(self, row: Row) -> None:
        self._run.log(_scalars(row), step=row.mean_steps)

    def on_end(self, summary: dict[str, Any]) -> None:
        self._run.summary.update(summary)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


class CurveLogger(Observer):
    """Draws `curve.png` when the run has ended."""

    def __init__(self, directory: RunDir) -> None:
        self._directory = directory

    def on_end(self, summary: dict[str, Any]) -> None:
        from haepo_jax.training.plots import curves_figure, read_curve, write_figure

        curve = read_curve(self._directory, label=summary["algo"])
        write_figure(curves_figure([curve], title=f"{summary['algo']} on {summary['env']}"), self._directory.curve)
