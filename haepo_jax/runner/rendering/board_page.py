"""Runs and sweeps as one self-contained HTML page: reads their folders, which may be unfinished, and fills in `board.html`."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from haepo_jax.messages import one_line
from haepo_jax.runner.config import ConfigError
from haepo_jax.runner.resume import FREE
from haepo_jax.runner.run_dir import RunDir
from haepo_jax.statistics import Array, bootstrap_interval, describe_returns, interquartile_mean_of_known

TRIALS = "trials.csv"
_LINKS = ("metrics.jsonl", "summary.json", "curve.png", "episode.gif", "config.yaml", "completions.jsonl", "eval.jsonl")
_SWEEP_LINKS = (TRIALS, "summary.json", "slice.png", "history.png", "sweep.json")
COMPLETIONS = 16
"""How many completions a page shows of each file that holds some, the last ones."""
_RETURNS = frozenset({"eval_return", "eval_return_greedy", "episode_return"})
"""The metrics with an interval: bootstrapping every metric would take minutes on a large page."""
_NOT_METRICS = frozenset({"row", "step", "update", "env_steps", "seeds"})
_NOT_SETTINGS = frozenset({"index", "trial", "state", "return", "curve_steps"})


def find(folder: Path) -> Iterator[Path]:
    """The runs and sweeps in a folder, itself included, sorted by path."""
    for path, below, files in os.walk(folder):
        if TRIALS in files or "metrics.jsonl" in files:
            below.clear()
            yield Path(path)
        below.sort()


def board_page(folders: Sequence[Path], out: Path) -> tuple[str, int, list[str]]:
    """The page of these runs and sweeps, with links relative to `out`; how many runs it shows; and what was wrong with those
    that it leaves out."""
    top = Path(os.path.commonpath([folder.absolute().parent for folder in folders]))
    runs: list[dict[str, Any]] = []
    unreadable = []
    for folder in folders:
        name = os.path.relpath(folder.absolute(), top)
        try:
            runs += _read_sweep(folder, name, out) if (folder / TRIALS).is_file() else [_read_run(folder, name, out)]
        except ConfigError as error:
            unreadable.append(str(error))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            unreadable.append(f"{folder} cannot be read: {one_line(str(error), 120)}")
    # `<` could begin a tag or a comment that ends the script element around the data.
    text = json.dumps({"runs": runs}, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    page = resources.files("haepo_jax.runner.rendering").joinpath("board.html").read_text(encoding="utf-8")
    return page.replace("__DATA__", text), len(runs), unreadable


def _links(folder: Path, names: Sequence[str], out: Path) -> list[list[str]]:
    """Labels and addresses of the files that exist, and of the folder."""

    def address(path: Path) -> str:
        return quote(os.path.relpath(path.absolute(), out.absolute().parent), errors="surrogateescape")

    files = [folder / name for name in names if (folder / name).exists()]
    label = "folder (TensorBoard)" if any(folder.glob("events.out.tfevents.*")) else "folder"
    return [*([file.stem, address(file)] for file in files), [label, address(folder)]]


def _read_run(folder: Path, name: str, out: Path) -> dict[str, Any]:
    directory = RunDir(folder)
    rows = directory.read_metrics()
    summary = directory.read_summary() if directory.summary.exists() else {}
    axis = "env_steps" if rows and "env_steps" in rows[0] else "step"  # of a language model's run
    curves = _curves(rows)
    final = np.array([summary.get("final_return_per_seed", [])], np.float64)
    if not np.isfinite(final).any():  # the last one known
        logged = next((curves[name][0] for name in ("eval_return", "episode_return", "reward") if name in curves), [])
        final = np.array([[x for x in logged if x is not None][-1:]], np.float64)
    diverged = len(summary.get("diverged", []))
    return {
        "name": name,
        "status": ("ended" if summary else "not ended") + (f", {diverged} diverged" if diverged else ""),
        "axis": axis,
        "settings": _settings(directory.read_settings()),
        "final": _spread(final),
        "steps": _rounded([row[axis] for row in rows]),
        "curves": curves,
        "links": _links(folder, _LINKS, out),
        "completions": _completions(folder / "completions.jsonl") + _completions(folder / "eval.jsonl"),
    }


def _read_sweep(folder: Path, name: str, out: Path) -> list[dict[str, Any]]:
    """One run per trial of a sweep, from its table."""
    csv.field_size_limit(2**31 - 1)  # a cell holds the curves of all seeds
    with (folder / TRIALS).open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    base = _settings(json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["trial"])
    links, runs = _links(folder, _SWEEP_LINKS, out), []
    for row in rows:
        swept = {key: _cell(x) for key, x in row.items() if key not in _NOT_SETTINGS and not key.endswith("_per_seed")}
        runs.append(
            {
                "name": f"{name} trial {row['index']}",
                "status": row["state"],
                "axis": "env_steps",
                "settings": base | {key: x for key, x in swept.items() if x != ""},
                "final": _spread(np.array([json.loads(row["return_per_seed"])], np.float64)),
                "steps": _rounded(json.loads(row["curve_steps"])),
                "curves": {"episode_return": _bands(np.array(json.loads(row["curve_return_per_seed"]), np.float64).T)},
                "links": links,
                "completions": [],
            }
        )
    return runs


def _curves(rows: list[dict[str, Any]]) -> dict[str, list[list[float | None]]]:
    """Every metric as in `_bands`: lists as long as the rows."""
    curves = {}
    for metric in dict.fromkeys(key for row in rows for key in row if key not in _NOT_METRICS):
        values = [row.get("seeds", {}).get(metric, [row.get(metric)]) for row in rows]
        seeds = max(map(len, values))
        known = np.array([row if len(row) == seeds else [None] * seeds for row in values], np.float64)
        if np.isfinite(known).any():
            curves[metric] = _bands(known, interval=metric in _RETURNS)
    return curves


def _bands(values: Array, interval: bool = True) -> list[list[float | None]]:
    """(rows, seeds) -> interquartile mean and, of several seeds, the ends of its 95% interval, as in `curve.png`."""
    ends = bootstrap_interval(values) if interval and values.shape[1] > 1 else ()
    return [_rounded(x) for x in (interquartile_mean_of_known(values), *ends)]


def _spread(values: Array) -> list[float | None]:
    """(1, seeds) -> interquartile mean and the ends of its 95% interval."""
    known = describe_returns(values)
    return _rounded([known["iqm"], *known["iqm_interval"]]) if np.isfinite(values).any() else []


def _completions(file: Path) -> list[list[Any]]:
    """File, step, prompt, completion and reward of the last completions in a file, if there is one."""
    if not file.exists():
        return []
    with file.open("rb") as stream:
        start = max(0, file.stat().st_size - 200_000)  # that of a long run is large
        stream.seek(start)
        # The first line may be cut, and the last one be half written.
        lines = [line for line in stream.readlines()[bool(start) :] if line.endswith(b"\n")][-COMPLETIONS:]
    rows = [json.loads(line) for line in lines]
    keys = ("prompt", "completion", "reward")
    return [[file.stem, row.get("env_steps", row.get("step")), *(_shown(row[key]) for key in keys)] for row in rows]


def _settings(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their keys on the command line, without those that change no result."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= _settings(value, f"{name}.")
        elif name not in FREE:
            flat["algo" if name == "algo.name" else name] = _shown(value)
    return flat


def _shown(value: Any) -> Any:
    """A number as it is, to sort and colour by, anything else as text."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if number or isinstance(value, str) else json.dumps(value, default=str).strip('"')


def _cell(text: str) -> Any:
    """A cell of a table: a number where it is one."""
    with contextlib.suppress(ValueError):
        return _shown(float(text))
    return text


def _rounded(values: Any) -> list[float | None]:
    """Six digits, more than can be seen; None for what is not finite, which JSON does not have."""
    return [float(f"{x:.6g}") if math.isfinite(x) else None for x in values]
