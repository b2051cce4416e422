"""Runs and sweeps as one self-contained HTML page: reads their folders and fills in `board.html`.

A run may still be under way, and a folder may be damaged: what can be read is shown, and the rest is counted.
"""

from __future__ import annotations

import base64
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
import numpy.typing as npt
import yaml

from haepo_jax.runner.resume import FREE
from haepo_jax.runner.run_dir import RunDir
from haepo_jax.runner.statistics import bootstrap_interval, describe_returns, interquartile_mean_of_known

TRIALS = "trials.csv"
EMBEDDED_BYTES = 16_000_000
"""How much of recorded episodes a page holds; what is beyond is a link."""

_LINKS = ("metrics.jsonl", "summary.json", "curve.png", "config.yaml", "weights.jsonl", "completions.jsonl")
_RETURNS = frozenset({"eval_return", "eval_return_greedy", "episode_return"})
"""The metrics that have an interval: to bootstrap those of every metric would take a large page minutes."""
_NOT_METRICS = frozenset({"row", "step", "update", "env_steps", "seeds"})
_yaml_loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def find(folder: Path) -> Iterator[Path]:
    """The runs and sweeps in a folder, itself included, in the order of their names."""
    for path, below, files in os.walk(folder):
        if TRIALS in files or "metrics.jsonl" in files:
            below.clear()
            yield Path(path)
        below.sort()


def board_page(folders: Sequence[Path], out: Path) -> tuple[str, int]:
    """The page of these runs and sweeps, with links relative to where it is to lie; and how many runs it shows."""
    top = Path(os.path.commonpath([folder.absolute().parent for folder in folders]))
    runs: list[dict[str, Any]] = []
    room = EMBEDDED_BYTES
    for folder in folders:
        name = os.path.relpath(folder.absolute(), top)
        links = _Links(folder, out)
        if (folder / TRIALS).is_file():
            runs += _read_sweep(folder, name, links)
        else:
            run = _read_run(folder, name, links)
            run["rollout"], used = _rollout(folder, links, room)
            room -= used
            runs.append(run)
    # `<` would begin a tag or a comment that ends the script element which the data stand in.
    text = json.dumps({"runs": runs}, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    page = resources.files("haepo_jax.runner.rendering").joinpath("board.html").read_text(encoding="utf-8")
    return page.replace("__DATA__", text), len(runs)


class _Links:
    """Addresses of a folder's files, relative to the page."""

    def __init__(self, folder: Path, out: Path) -> None:
        self._folder = folder
        self._base = quote(os.path.relpath(folder.absolute(), out.absolute().parent), errors="surrogateescape")

    def to(self, name: str) -> str:
        return f"{self._base}/{quote(name, errors='surrogateescape')}"

    def all(self, names: Sequence[str]) -> list[list[str]]:
        """Label and address of the files that there are, and of the folder."""
        found = [[Path(name).stem, self.to(name)] for name in names if (self._folder / name).exists()]
        events = any(self._folder.glob("events.out.tfevents.*"))
        return [*found, ["folder (TensorBoard)" if events else "folder", self._base]]


def _read_run(folder: Path, name: str, links: _Links) -> dict[str, Any]:
    directory = RunDir(folder)
    rows, damaged = _read_lines(directory.metrics)
    summary = _read_object(directory.summary, json.loads)
    config = _read_object(directory.config, lambda text: yaml.load(text, _yaml_loader))
    # Where nothing counts the environment's steps, as in a language model's run, updates take their place.
    axis = "env_steps" if any("env_steps" in row for row in rows) else "update"
    steps = _numbers([row.get(axis) for row in rows])[:, 0]
    curves = _curves(rows)
    weights, damaged_weights = _read_weights(folder / "weights.jsonl")
    if weights:
        # Beside the metrics of the row that each line belongs to.
        fresh = {line["steps"]: line["alignment"] for line in weights}
        curves["alignment of new episodes"] = [_rounded(_numbers([fresh.get(x) for x in steps])[:, 0])]
    final = _numbers([summary.get("final_return_per_seed")])
    ended = np.isfinite(final).any()
    if not ended:
        best = curves.get("eval_return") or curves.get("episode_return") or curves.get("reward") or [[]]
        final = _numbers([next((x for x in reversed(best[0]) if x is not None), None)])
    diverged = summary.get("diverged")
    status = ("ended" if summary else "not ended") + (f", {len(diverged)} diverged" if diverged else "")
    lost = damaged + damaged_weights
    return {
        "name": name,
        "status": status + (f", {lost} damaged line{'s' if lost > 1 else ''}" if lost else ""),
        "axis": axis,
        "settings": _settings(config),
        "final": _spread(final),
        "steps": _rounded(steps),
        "curves": curves,
        "weights": weights,
        "links": links.all(_LINKS),
    }


def _read_sweep(folder: Path, name: str, links: _Links) -> list[dict[str, Any]]:
    """A run for each trial of a sweep, from its table."""
    asked = _read_object(folder / "sweep.json", json.loads).get("trials")
    bases = asked if isinstance(asked, dict) else {}
    table: list[dict[str, str]] = []
    csv.field_size_limit(2**31 - 1)  # a cell holds the curves of all seeds
    with contextlib.suppress(OSError, csv.Error), (folder / TRIALS).open(encoding="utf-8", errors="replace") as file:
        for row in csv.DictReader(file):
            if None not in row and None not in row.values():  # neither longer than the heading nor shorter
                table.append(row)
    shared = links.all((TRIALS, "summary.json", "curves.png", "returns.png", "parallel.png", "sweep.json"))
    own = {"index", "trial", "state", "return", "curve_steps", "pbt_values"}
    runs = []
    for row in table:
        swept = {key: _value(x) for key, x in row.items() if key not in own and not key.endswith("_per_seed")}
        base = _settings(bases.get(str(swept.get("algo")), next(iter(bases.values()), {})))
        steps, curves, returns = (
            _list(row.get(key)) for key in ("curve_steps", "curve_return_per_seed", "return_per_seed")
        )
        curve = _numbers(curves or [None]).T  # (points, seeds)
        runs.append(
            {
                "name": f"{name} trial {row.get('index')}",
                "status": row.get("state") or "",
                "axis": "env_steps",
                "settings": base | {key: x for key, x in swept.items() if x not in ("", None)},
                "final": _spread(_numbers([returns])),
                "steps": _rounded(_numbers(steps[: len(curve)])[:, 0]),
                "curves": {"episode_return": _bands(curve)},
                "weights": [],
                "links": shared,
                "rollout": None,
            }
        )
    return runs


def _curves(rows: list[dict[str, Any]]) -> dict[str, list[list[float | None]]]:
    """Every metric as in `_bands`: lists as long as the rows."""
    curves = {}
    for metric in dict.fromkeys(key for row in rows for key in row if key not in _NOT_METRICS):
        seeds = [row["seeds"].get(metric) if isinstance(row.get("seeds"), dict) else None for row in rows]
        known = _numbers([row.get(metric) if seed is None else seed for row, seed in zip(rows, seeds, strict=True)])
        if np.isfinite(known).any():
            curves[metric] = _bands(known, interval=metric in _RETURNS)
    return curves


def _bands(values: npt.NDArray[np.float64], interval: bool = True) -> list[list[float | None]]:
    """(rows, seeds) -> interquartile mean and, of several seeds, the ends of its 95% interval, as in `curve.png`."""
    ends = bootstrap_interval(values) if interval and values.shape[1] > 1 else ()
    return [_rounded(x) for x in (interquartile_mean_of_known(values), *ends)]


def _spread(values: npt.NDArray[np.float64]) -> list[float | None]:
    """(1, seeds) -> interquartile mean and the ends of its 95% interval."""
    known = describe_returns(values)
    return _rounded([known["iqm"], *known["iqm_interval"]]) if np.isfinite(values).any() else []


def _read_weights(file: Path) -> tuple[list[dict[str, Any]], int]:
    lines, damaged = _read_lines(file)
    weights = []
    for line in lines:
        score, returns = (_numbers([line.get(key)])[0] for key in ("score", "return"))
        steps, alignment = _numbers([[line.get("env_steps"), line.get("alignment")]])[0]
        if len(score) != len(returns) or not np.isfinite(steps):
            damaged += 1
            continue
        known = np.isfinite(score) & np.isfinite(returns)
        weights.append(
            {"steps": _rounded([steps])[0], "alignment": _rounded([alignment])[0], "score": _rounded(score[known]),
             "return": _rounded(returns[known])}
        )  # fmt: skip
    return weights, damaged


def _rollout(folder: Path, links: _Links, room: int) -> tuple[dict[str, str] | None, int]:
    """The newest episode that `haepo_jax.render` has left, in the page where there is room for it; and its size there."""
    with contextlib.suppress(OSError):
        found = [file for file in (folder / "episode.gif", folder / "episode.mp4") if file.is_file()]
        if found:
            file = max(found, key=lambda file: file.stat().st_mtime)
            kind = "image/gif" if file.suffix == ".gif" else "video/mp4"
            size = file.stat().st_size
            if size > room:
                return {"link": links.to(file.name)}, 0
            return {kind[:5]: f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"}, size
    return None, 0


# --- What may be damaged ----------------------------------------------------------------------------------------------


def _read_lines(file: Path) -> tuple[list[dict[str, Any]], int]:
    """The JSON objects of a file, a line each, and how many whole lines hold none; one that is being written waits."""
    rows, damaged = [], 0
    with contextlib.suppress(OSError), file.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                row = _parsed(line, json.loads)
                rows += [row] if row else []
                damaged += not row
    return rows, damaged


def _read_object(file: Path, parse: Any) -> dict[str, Any]:
    """What a file holds, empty where it cannot be read."""
    with contextlib.suppress(OSError):
        return _parsed(file.read_bytes(), parse)
    return {}


def _parsed(text: bytes, parse: Any) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError, yaml.YAMLError):
        value = parse(text)
        if isinstance(value, dict):
            return value
    return {}


def _settings(config: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by their names on the command line; those that change no result are left out."""
    flat: dict[str, Any] = {}
    for key, value in config.items() if isinstance(config, dict) else ():
        name = f"{prefix}{key}"
        if name == "algo.name":
            flat["algo"] = _shown(value)
        elif isinstance(value, dict):
            flat |= _settings(value, f"{name}.")
        elif name not in FREE:
            flat[name] = _shown(value)
    return flat


def _shown(value: Any) -> Any:
    """A number as it is, to sort and colour by, anything else as text."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if number else json.dumps(value, default=str).strip('"')


def _value(text: str) -> Any:
    """A cell of a table: a number where it is one."""
    with contextlib.suppress(ValueError):
        return _shown(float(text))
    return text


def _list(text: str | None) -> list[Any]:
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        value = json.loads(text or "")
        return value if isinstance(value, list) else []
    return []


def _numbers(rows: list[Any]) -> npt.NDArray[np.float64]:
    """Rows of numbers, (rows, longest row), at least one column; NaN for what is missing or no number."""
    lists = [row if isinstance(row, list) else [row] for row in rows]
    values = np.full((len(lists), max([1, *map(len, lists)])), np.nan)
    for place, row in zip(values, lists, strict=True):
        place[: len(row)] = [x if isinstance(x, int | float) and abs(x) < 1e300 else np.nan for x in row]
    return values


def _rounded(values: Any) -> list[float | None]:
    """Six digits, as many as an eye can use; None for what is not finite, which JSON does not have."""
    return [float(f"{x:.6g}") if math.isfinite(x) else None for x in values]
