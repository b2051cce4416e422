"""Tables and figures of the benchmark, from its JSON files alone: `python experiments/benchmarks/report.py [FOLDER]`.

Without a folder they are of the stored results, and go into `experiments/results/README.md`.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from haepo_jax.training.statistics import bootstrap_interval, interquartile_mean  # noqa: E402

RESULTS = Path(__file__).resolve().parents[1] / "results"


def spread(values: list[Any], digits: int = 1) -> str:
    """Median, lowest and highest of what is known."""
    known = [value for value in values if value is not None]
    missing = f", {len(values) - len(known)} not" if len(known) < len(values) else ""
    if not known:
        return "none"
    return f"{statistics.median(known):.{digits}f} ({min(known):.{digits}f} to {max(known):.{digits}f}{missing})"


def start(found: dict[str, Any]) -> list[str]:
    lines = [
        "| | cache | s to the first update | s to a return of 475 | peak MB |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for side, kinds in found["runs"].items():
        for kind, runs in kinds.items():
            columns = [spread([run[name] for run in runs]) for name in ("updated", "solved")]
            peak = statistics.median(run["peak_bytes"] for run in runs) / 1e6
            lines.append(f"| {side} | {kind} | {columns[0]} | {columns[1]} | {peak:,.0f} |")
    return lines


def speed(found: dict[str, Any]) -> list[str]:
    lines = [
        "| task | environments | seeds | peer | steps/s, ours | peer's | ratio | rounds ahead | s to compile, ours |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found["rows"]:
        rates = [statistics.median(a["steps"] / a["seconds"] for a in answers) for answers in row["answers"].values()]
        ahead = f"{sum(ratio > 1 for ratio in row['ratios'])} of {len(row['ratios'])}"
        compiled = row["first"]["haepo_jax"]["compile_seconds"]
        lines.append(
            f"| {row['env']} | {row['num_envs']} | {row['seeds']} | {row['peer']} | {rates[0]:,.0f} | {rates[1]:,.0f} "
            f"| {spread(row['ratios'], 2)} | {ahead} | {compiled:.1f} |"
        )
    return lines


def limit(found: dict[str, Any]) -> list[str]:
    names = ("rollout_seconds", "learn_seconds", "update_seconds")
    lines = [
        "| CartPole | share of the limit | rollout, bare | learning, bare | update |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for algorithm in dict.fromkeys(row["algorithm"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["algorithm"] == algorithm]
        parts = [f"{spread([1e3 * row[name] for row in rows])} ms" for name in names]
        lines.append(f"| {algorithm} | {spread([row['share'] for row in rows], 2)} | {' | '.join(parts)} |")
    return lines


def sequences(found: dict[str, Any]) -> list[str]:
    lines = [
        "| sequences | tokens each | one pass, ms | scan over the carry, ms | ratio |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found["rows"]:
        times = [spread([1e3 * x for x in values]) for values in row["seconds"].values()]
        lines.append(f"| {row['sequences']} | {row['length']} | {' | '.join(times)} | {spread(row['ratios'])} |")
    return lines


def memory(found: dict[str, Any]) -> list[str]:
    lines = ["| horizon | stored MB | temporary MB | ratio |", "| ---: | ---: | ---: | ---: |"]
    for row in found["rows"]:
        stored, temporary = row["stored_bytes"] / 1e6, row["temporary_bytes"] / 1e6
        lines.append(f"| {row['horizon']:,} | {stored:,.1f} | {temporary:,.1f} | {temporary / stored:.1f} |")
    return lines


def curves(found: dict[str, Any], folder: Path) -> list[str]:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for side, values in found["returns"].items():
        returns = np.asarray(values).T  # (points, seeds)
        steps = found["total_steps"] * np.arange(1, len(returns) + 1) / len(returns)
        axes.plot(steps, interquartile_mean(returns), label=side)
        axes.fill_between(steps, *bootstrap_interval(returns), alpha=0.25)
    axes.set(xlabel="environment steps", ylabel="return, interquartile mean", title=f"PPO on {found['env']}, 95% bands")
    axes.legend()
    figure.savefig(folder / "benchmark_curves.png", dpi=150)
    return [f"![Returns against steps]({folder / 'benchmark_curves.png'})"]


def plain(found: dict[str, Any]) -> list[str]:
    skipped = ("command", "machine", "versions")
    shown = {key: round(value, 1) if isinstance(value, float) else value for key, value in found.items()}
    return ["; ".join(f"{k} {v}" for k, v in shown.items() if k not in skipped and v and not isinstance(v, list))]


def written(folder: Path) -> str:
    """All tables, as Markdown."""
    tables = {"start": start, "speed": speed, "limit": limit, "sequences": sequences, "memory": memory}
    lines = []
    for file in sorted(folder.glob("benchmark_*.json")):
        part, found = file.stem.removeprefix("benchmark_"), json.loads(file.read_text())
        if "command" in found:
            table = curves(found, folder) if part == "curves" else tables.get(part, plain)(found)
            lines += [f"### {part}", "", f"`{found['command']}`", "", *table, ""]
    return "\n".join(lines)


def filled_in(text: str, folder: Path) -> str:
    """A document whose end, from its mark on, are the tables."""
    head, mark, _ = text.partition("<!-- benchmarks -->\n")
    return f"{head}{mark}\n{written(folder)}" if mark else text


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    print(written(folder))
    if folder == RESULTS:
        document = folder / "README.md"
        document.write_text(filled_in(document.read_text(), folder))


if __name__ == "__main__":
    main()
