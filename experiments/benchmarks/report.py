"""Tables and figures of the benchmark, from its JSON files alone: `python experiments/benchmarks/report.py [FOLDER]`.

Without a folder they are of the stored results, and go into `experiments/benchmarks/README.md`.
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

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[1:3]]

from tables import markdown  # noqa: E402

from haepo_jax.statistics import bootstrap_interval, interquartile_mean  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results"


def spread(values: list[Any], digits: int = 1) -> str:
    """Median, lowest and highest of what is known."""
    known = [value for value in values if value is not None]
    missing = f", {len(values) - len(known)} not" if len(known) < len(values) else ""
    if not known:
        return "none"
    return f"{statistics.median(known):.{digits}f} ({min(known):.{digits}f} to {max(known):.{digits}f}{missing})"


def start(found: dict[str, Any]) -> str:
    rows = []
    for side, kinds in found["runs"].items():
        for kind, runs in kinds.items():
            times = [spread([run[name] for run in runs]) for name in ("updated", "solved")]
            peak = statistics.median(run["peak_bytes"] for run in runs) / 1e6
            rows.append([side, kind, *times, f"{peak:,.0f}"])
    return markdown(["", "cache", "s to the first update", "s to a return of 475", "peak MB"], rows)


def speed(found: dict[str, Any]) -> str:
    rows = []
    for row in found["rows"]:
        rates = [statistics.median(a["steps"] / a["seconds"] for a in answers) for answers in row["answers"].values()]
        ahead = f"{sum(ratio > 1 for ratio in row['ratios'])} of {len(row['ratios'])}"
        compiled = row["first"]["haepo_jax"]["compile_seconds"]
        rows.append(
            [row["env"], str(row["num_envs"]), str(row["seeds"]), row["peer"], f"{rates[0]:,.0f}", f"{rates[1]:,.0f}",
             spread(row["ratios"], 2), ahead, f"{compiled:.1f}"]
        )  # fmt: skip
    head = [
        "task",
        "environments",
        "seeds",
        "peer",
        "steps/s, ours",
        "peer's",
        "ratio",
        "rounds ahead",
        "s to compile, ours",
    ]
    return markdown(head, rows)


def limit(found: dict[str, Any]) -> str:
    rows = []
    for algorithm, env in dict.fromkeys((row["algorithm"], row["env"]) for row in found["rows"]):
        own = [row for row in found["rows"] if (row["algorithm"], row["env"]) == (algorithm, env)]
        times = ("rollout_seconds", "learn_seconds", "update_seconds")
        share = spread([row["share"] for row in own], 2)
        rows.append([algorithm, env, share, *(spread([1e3 * row[name] for row in own]) for name in times)])
    return markdown(["", "task", "share of the limit", "rollout, bare, ms", "learning, bare, ms", "update, ms"], rows)


def sequences(found: dict[str, Any]) -> str:
    rows = []
    for row in found["rows"]:
        times = [spread([1e3 * x for x in values]) for values in row["seconds"].values()]
        rows.append([str(row["sequences"]), str(row["length"]), *times, spread(row["ratios"])])
    return markdown(["sequences", "tokens each", "one pass, ms", "scan over the carry, ms", "ratio"], rows)


def memory(found: dict[str, Any], folder: Path) -> str:
    rows: list[list[str]] = []
    lines: dict[str, list[tuple[int, float, float]]] = {}
    for row in found["rows"]:
        stored, used = row["stored_bytes"] / 1e6, row["memory_bytes"] / 1e6
        lines.setdefault(row["algorithm"], []).append((row["horizon"], stored, used))
        numbers = (f"{stored:,.1f}", f"{used:,.1f}", f"{used / stored:.1f}")
        rows.append([row["algorithm"], f"{row['horizon']:,}", *numbers])
    figure, axes = canvas()
    for algorithm, points in lines.items():
        horizons, stored, used = zip(*points, strict=True)
        (line,) = axes.loglog(horizons, used, marker="o", label=f"{algorithm}, an update")
        axes.loglog(horizons, stored, color=line.get_color(), linestyle=":", label=f"{algorithm}, stored")
    axes.set(xlabel="horizon", ylabel="MB", title="Memory with 1,024 environments of CartPole")
    axes.legend(fontsize=8)
    figure.savefig(folder / "memory.png", dpi=150)
    table = markdown(["", "horizon", "stored MB", "memory MB", "ratio"], rows)
    return f"{table}\n\n![Memory against the horizon](results/memory.png)"


def canvas() -> tuple[Figure, Any]:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def curves(found: dict[str, Any], folder: Path) -> str:
    figure, axes = canvas()
    for side, values in found["returns"].items():
        returns = np.asarray(values).T  # (points, seeds)
        steps = found["total_steps"] * np.arange(1, len(returns) + 1) / len(returns)
        axes.plot(steps, interquartile_mean(returns), label=side)
        axes.fill_between(steps, *bootstrap_interval(returns), alpha=0.25)
    axes.set(xlabel="environment steps", ylabel="return, interquartile mean", title=f"PPO on {found['env']}, 95% bands")
    axes.legend()
    figure.savefig(folder / "curves.png", dpi=150)
    return "![Returns against steps](results/curves.png)"


def plain(found: dict[str, Any]) -> str:
    skipped = ("command", "machine", "versions")
    shown = {key: round(value, 1) if isinstance(value, float) else value for key, value in found.items()}
    return "; ".join(f"{k} {v}" for k, v in shown.items() if k not in skipped and v and not isinstance(v, list))


def written(folder: Path) -> str:
    """All tables, as Markdown."""
    tables = {"start": start, "speed": speed, "limit": limit, "sequences": sequences}
    figures = {"memory": memory, "curves": curves}
    lines = []
    for file in sorted(folder.glob("*.json")):
        part, found = file.stem, json.loads(file.read_text())
        if "command" in found:
            table = figures[part](found, folder) if part in figures else tables.get(part, plain)(found)
            lines += [f"### {part}", "", f"`{found['command']}`", "", table, ""]
    return "\n".join(lines)


def filled_in(text: str, folder: Path) -> str:
    """A document whose end, from its mark on, are the tables."""
    head, mark, _ = text.partition("<!-- benchmarks -->\n")
    return f"{head}{mark}\n{written(folder)}" if mark else text


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    print(written(folder))
    if folder == RESULTS:
        document = folder.parent / "README.md"
        document.write_text(filled_in(document.read_text(), folder))


if __name__ == "__main__":
    main()
