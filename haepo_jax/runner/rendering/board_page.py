"""Runs and sweeps as one self-contained HTML page: reads their folders and fills in `board.html`.

A run may be unfinished, and a file damaged: what can be read is shown, and lines that cannot are counted.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import yaml

from haepo_jax.runner.resume import FREE
from haepo_jax.runner.run_dir import RunDir
from haepo_jax.statistics import bootstrap_interval, describe_returns, interquartile_mean_of_known

TRIALS = "trials.csv"
EMBEDDED_BYTES = 16_000_000
"""How many bytes of recorded episodes a page embeds; it links to the others."""

_LINKS = ("metrics.jsonl", "summary.json", "curve.png", "config.yaml", "completions.jsonl", "eval.jsonl")
_SWEEP_LINKS = (TRIALS, "summary.json", "curves.png", "returns.png", "parallel.png", "sweep.json")
COMPLETIONS = 16
"""How many completions a page shows of each file that holds some, the last ones."""
_RETURNS = frozenset({"eval_return", "eval_return_greedy", "episode_return"})
"""The metrics with an interval: bootstrapping every metric would take minutes on a large page."""
_NOT_METRICS = frozenset({"row", "step", "update", "env_steps", "seeds"})
_NOT_SETTINGS = frozenset({"index", "trial", "state", "return", "curve_steps", "pbt_values"})

Array = npt.NDArray[np.float64]


def find(folder: Path) -> Iterator[Path]:
    """The runs and sweeps in a folder, itself included, sorted by path."""
    for path, below, files in os.walk(folder):
        if TRIALS in files or "metrics.jsonl" in files:
            below.clear()
            yield Path(path)
        below.sort()


def board_page(folders: Sequence[Path], out: Path) -> tuple[str, int]:
    """The page of these runs and sweeps, with links relative to `out`, and how many runs it shows."""
    top = Path(os.path.commonpath([folder.absolute().parent for folder in folders]))
    runs: list[dict[str, Any]] = []
    room = EMBEDDED_BYTES
    for folder in folders:
        name = os.path.relpath(folder.absolute(), top)
        if (folder / TRIALS).is_file():
            runs += _read_sweep(folder, name, out)
        else:
            rollout, used = _rollout(folder, out, room)
            room -= used
            runs.append(_read_run(folder, name, out) | {"rollout": rollout})
    # `<` could begin a tag or a comment that ends the script element around the data.
    text = json.dumps({"runs": runs}, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    page = resources.files("haepo_jax.runner.rendering").joinpath("board.html").read_text(encoding="utf-8")
    return page.replace("__DATA__", text), len(runs)


def _address(path: Path, out: Path) -> str:
    return quote(os.path.relpath(path.absolute(), out.absolute().parent), errors="surrogateescape")


def _links(folder: Path, names: Sequence[str], out: Path) -> list[list[str]]:
    """Labels and addresses of the files that exist, and of the folder."""
    files = [folder / name for name in names if (folder / name).exists()]
    label = "folder (TensorBoard)" if any(folder.glob("events.out.tfevents.*")) else "folder"
    return [*([file.stem, _address(file, out)] for file in files), [label, _address(folder, out)]]


def _read_run(folder: Path, name: str, out: Path) -> dict[str, Any]:
    directory = RunDir(folder)
    rows, damaged = _read_lines(directory.metrics)
    summary = _read_object(directory.summary)
    axis = "env_steps" if any("env_steps" in row for row in rows) else "step"  # of a language model's run
    steps = _numbers([row.get(axis) for row in rows])[:, 0]
    curves = _curves(rows)
    final = _numbers([summary.get("final_return_per_seed")])
    if not np.isfinite(final).any():  # the last one known
        logged = next((curves[name][0] for name in ("eval_return", "episode_return", "reward") if name in curves), [])
        final = _numbers([next((x for x in reversed(logged) if x is not None), None)])
    status = ["ended" if summary else "not ended"]
    if diverged := summary.get("diverged"):
        status.append(f"{len(diverged)} diverged")
    if damaged:
        status.append(f"{damaged} damaged line{'s' if damaged > 1 else ''}")
    return {
        "name": name,
        "status": ", ".join(status),
        "axis": axis,
        "settings": _settings(_read_object(directory.config, _load_yaml)),
        "final": _spread(final),
        "steps": _rounded(steps),
        "curves": curves,
        "links": _links(folder, _LINKS, out),
        "completions": _completions(folder / "completions.jsonl") + _completions(folder / "eval.jsonl"),
    }


def _read_sweep(folder: Path, name: str, out: Path) -> list[dict[str, Any]]:
    """One run per trial of a sweep, from its table."""
    bases = _read_object(folder / "sweep.json").get("trials")
    bases = bases if isinstance(bases, dict) else {}
    links, runs = _links(folder, _SWEEP_LINKS, out), []
    for row in _read_table(folder / TRIALS):
        swept = {key: _cell(x) for key, x in row.items() if key not in _NOT_SETTINGS and not key.endswith("_per_seed")}
        base = _settings(bases.get(str(swept.get("algo")), next(iter(bases.values()), {})))
        steps, curves, returns = (
            _parsed(row.get(key, ""), list) for key in ("curve_steps", "curve_return_per_seed", "return_per_seed")
        )
        curve = _numbers(curves or [None]).T  # (points, seeds)
        runs.append(
            {
                "name": f"{name} trial {row.get('index')}",
                "status": row.get("state") or "",
                "axis": "env_steps",
                "settings": base | {key: x for key, x in swept.items() if x != ""},
                "final": _spread(_numbers([returns])),
                "steps": _rounded(_numbers(steps[: len(curve)])[:, 0]),
                "curves": {"episode_return": _bands(curve)},
                "links": links,
                "completions": [],
                "rollout": None,
            }
        )
    return runs


def _curves(rows: list[dict[str, Any]]) -> dict[str, list[list[float | None]]]:
    """Every metric as in `_bands`: lists as long as the rows."""
    curves = {}
    seeds = [row["seeds"] if isinstance(row.get("seeds"), dict) else {} for row in rows]
    for metric in dict.fromkeys(key for row in rows for key in row if key not in _NOT_METRICS):
        known = _numbers([of.get(metric, row.get(metric)) for row, of in zip(rows, seeds, strict=True)])
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


def _rollout(folder: Path, out: Path, room: int) -> tuple[dict[str, str] | None, int]:
    """The newest episode written by `haepo_jax.render`, embedded or, beyond `room`, as a link; and its bytes in the page."""
    with contextlib.suppress(OSError):
        found = [file for file in (folder / "episode.gif", folder / "episode.mp4") if file.is_file()]
        for file in sorted(found, key=lambda file: file.stat().st_mtime)[-1:]:
            if (size := file.stat().st_size) > room:
                return {"link": _address(file, out)}, 0
            kind = "image/gif" if file.suffix == ".gif" else "video/mp4"
            return {kind[:5]: f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"}, size
    return None, 0


def _completions(file: Path) -> list[list[Any]]:
    """File, step, prompt, completion and reward of the last completions in a file."""
    with contextlib.suppress(OSError), file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - 200_000))  # that of a long run is large
        rows = [row for line in stream if (row := _parsed(line, dict))][-COMPLETIONS:]
        step = "env_steps" if any("env_steps" in row for row in rows) else "step"
        return [
            [file.stem, *(_shown(row.get(key)) for key in (step, "prompt", "completion", "reward"))] for row in rows
        ]
    return []


# --- What may be damaged ----------------------------------------------------------------------------------------------


_load_yaml = functools.partial(yaml.load, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _parsed(text: str | bytes, kind: type, parse: Callable[[str | bytes], Any] = json.loads) -> Any:
    """The value that a text holds; an empty one where it cannot be read or is of another kind."""
    with contextlib.suppress(ValueError, RecursionError, yaml.YAMLError):
        if isinstance(value := parse(text), kind):
            return value
    return kind()


def _read_object(file: Path, parse: Callable[[str | bytes], Any] = json.loads) -> dict[str, Any]:
    with contextlib.suppress(OSError):
        return dict(_parsed(file.read_bytes(), dict, parse))
    return {}


def _read_lines(file: Path) -> tuple[list[dict[str, Any]], int]:
    """The JSON objects in a file of lines, and how many lines hold none; a last line without its end is being written."""
    lines: list[bytes] = []
    with contextlib.suppress(OSError):
        lines = file.read_bytes().split(b"\n")[:-1]
    rows = [row for line in lines if (row := _parsed(line, dict))]
    return rows, len(lines) - len(rows)


def _read_table(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file that are neither longer than the heading nor shorter."""
    table: list[dict[str, str]] = []
    csv.field_size_limit(2**31 - 1)  # a cell holds the curves of all seeds
    with contextlib.suppress(OSError, csv.Error), file.open(encoding="utf-8", errors="replace") as lines:
        for row in csv.DictReader(lines):
            if None not in row and None not in row.values():
                table.append(row)
    return table


def _settings(config: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by their keys on the command line, without those that change no result."""
    flat: dict[str, Any] = {}
    for key, value in config.items() if isinstance(config, dict) else ():
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


def _numbers(rows: list[Any]) -> Array:
    """Rows of numbers, (rows, longest row), at least one column; NaN where one is missing or not a number."""
    lists = [row if isinstance(row, list) else [row] for row in rows]
    values = np.full((len(lists), max([1, *map(len, lists)])), np.nan)
    for place, row in zip(values, lists, strict=True):
        place[: len(row)] = [x if isinstance(x, int | float) and abs(x) < 1e300 else np.nan for x in row]
    return values


def _rounded(values: Any) -> list[float | None]:
    """Six digits, more than can be seen; None for what is not finite, which JSON does not have."""
    return [float(f"{x:.6g}") if math.isfinite(x) else None for x in values]
