"""The tables and the figure of what `run.py` has stored: `python experiments/smollm2/report.py`.

Reward of the greedy completions of held-out prompts, against generated tokens and the KL to the start; which answers are
distinct, so that collapse shows; and the best and the worst completions as text. Runs that share a machine, or are paused, do not
show what a method costs in seconds: those are the steps of a run times what `speed.py` measured for such a step.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REPORT = HERE / "results" / "README.md"
SPEED = HERE / "speed.json"
INTRODUCTION = """\
Held-out reward of greedy completions before, during and after fine-tuning, by method. `_replay` learns from the last four
batches, `_2e-5` has twice the learning rate. `python experiments/smollm2/report.py` writes this page from the results of
`run.py`, which describes the runs; [docs/language.md](../../../docs/language.md) says what they show. Seconds are steps times
the seconds of a step [below](#speed), on one CPU core, without compilation and evaluation.
"""
PAIRS_TEXT = """\
Nothing is sampled: every step learns from 16 pairs of a right and a wrong answer, and tokens are those of the pairs. `beta` is
that of DPO (0.1 where nothing is said), `temperature` that of HAEPO's softmax (1).
"""
SPEED_TEXT = """\
A step of our GRPO learner against one of Tunix's own, on the same prompts and shapes: 4 prompts with 8 completions each, one
update of all weights in float32, and a KL penalty; ours also with four updates a batch, and with one for each of four batches.
The table shows medians over the steps after the second, in seconds. `compiling` is the time that the first two steps take in
addition. Measured with `{command}` on {device}, jax {jax}, {date}."""
TARGETS = {"sums": 0.5, "json": 0.9}
"""The held-out reward whose price in tokens is compared."""
COLOURS = {"haepo": "red", "haepo_paper": "orange", "grpo": "blue", "gspo": "green", "dpo": "purple"}
STYLES = {"4": ":", "replay": "-", "lora": "-.", "": "--"}
"""By loss, and by what is updated. Runs of another learning rate and those on pairs are in a table only."""

Results = dict[tuple[str, str], list[dict[str, Any]]]


def read(folder: Path = HERE / "results") -> Results:
    """The runs that are reported, by task and method."""
    found: Results = defaultdict(list)
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text())
        found[result["task"], result["method"]].append(result)
    return dict(found)


def arrival(result: dict[str, Any], target: float) -> dict[str, Any] | None:
    """The first evaluation that reached the target; None: none did."""
    return next((point for point in result["eval"] if point["reward"] >= target), None)


def seconds_of_steps(task: str) -> dict[str, float]:
    """Seconds that `speed.py` measured for a step, by the end of a method's name that says what is updated."""
    sides = json.loads(SPEED.read_text())["tasks"][task] if SPEED.exists() else {}
    names = {"4": "haepo_jax, 4 updates", "replay": "haepo_jax, 4 batches", "": "haepo_jax"}
    return {end: sides[name]["seconds"]["steps"] for end, name in names.items() if name in sides}


def update_of(method: str) -> str:
    """The end of a method's name that says what is updated, one of `STYLES`."""
    return next(end for end in STYLES if method.removesuffix("_2e-5").endswith(end))


def table(results: Results, task: str) -> str:
    """One row a method, means over its seeds."""
    head = ["method", "seeds", "reward before", "mean over the evaluations", "after (worst to best seed)"]
    head += [f"tokens to {TARGETS[task]:g} (of those that reach it)", "seconds", "KL", "entropy", "distinct"]
    of_step = seconds_of_steps(task)
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for (name, method), runs in results.items():
        if name != task:
            continue
        last = [run["eval"][-1] for run in runs]
        ends = [point["reward"] for point in last]
        reached = [point for point in (arrival(run, TARGETS[task]) for run in runs) if point is not None]
        mean = {key: sum(point[key] for point in last) / len(last) for key in ("kl", "entropy", "distinct")}
        tokens, steps = (sum(point[key] for point in reached) / max(len(reached), 1) for key in ("tokens", "step"))
        is_timed = reached and update_of(method) in of_step and "_pairs" not in method
        curve = [point["reward"] for run in runs for point in run["eval"][1:]]
        cells = [
            method,
            str(len(runs)),
            f"{runs[0]['eval'][0]['reward']:.3f}",
            f"{sum(curve) / len(curve):.3f}",
            f"{sum(ends) / len(ends):.3f} ({min(ends):.3f} to {max(ends):.3f})",
        ]
        cells += [
            f"{tokens:,.0f} ({len(reached)} of {len(runs)})" if reached else "never",
            f"{steps * of_step[update_of(method)]:.0f}" if is_timed else "",
            f"{mean['kl']:.3f}",
            f"{mean['entropy']:.2f}",
            f"{mean['distinct']:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def speed(measured: dict[str, Any]) -> str:
    """What `speed.py` has measured, a row for each task and learner."""
    head = ["task", "learner", "seconds a step (fastest to slowest)", "sampling", "reference", "update"]
    head += ["compiling", "peak memory, GB"]
    lines = ["| " + " | ".join(head) + " |", "| --- | --- |" + " ---: |" * (len(head) - 2)]
    for task, sides in measured["tasks"].items():
        for side, found in sides.items():
            seconds = found["seconds"]
            parts = [f"{seconds[part]:.2f}" if part in seconds else "" for part in ("sampling", "reference", "update")]
            step = f"{seconds['steps']:.2f} ({found['fastest']:.2f} to {found['slowest']:.2f})"
            cells = [task, side, step, *parts, f"{found['compiling']:.0f}", f"{found['peak_gb']:.1f}"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def completions(results: Results, task: str) -> str:
    """The worst and the best completions of each method's first seed."""
    lines = []
    for (name, method), runs in results.items():
        if name == task:
            for kind, rows in runs[0]["completions"].items():
                texts = (json.dumps(row["completion"], ensure_ascii=False) for row in rows)
                lines.append(f"- {method}, {kind}: {', '.join(f'`{text}`' for text in texts)}")
    return "\n".join(lines)


def draw(results: Results, out: Path) -> None:
    """Held-out reward against tokens and KL; a row of panels for each task."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = sorted({task for task, _ in results})
    figure, panels = plt.subplots(len(names), 2, figsize=(9, 3.5 * len(names)), squeeze=False, layout="constrained")
    for row, task in zip(panels, names, strict=True):
        for panel, axis in zip(row, ("tokens", "kl"), strict=True):
            for (name, method), runs in results.items():
                if name == task and "e-" not in method and "_pairs" not in method:
                    curves = list(zip(*(run["eval"] for run in runs), strict=False))
                    x, y = (
                        [sum(p[key] for p in points) / len(points) for points in curves] for key in (axis, "reward")
                    )
                    loss = max((loss for loss in COLOURS if method.startswith(loss)), key=len)
                    panel.plot(x, y, STYLES[update_of(method)], color=f"tab:{COLOURS[loss]}", label=method)
            panel.set(xlabel=axis, ylabel="held-out reward", title=task)
        row[0].legend(fontsize=7)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def report(results: Results) -> str:
    """The whole page."""
    parts = ["# SmolLM2-135M: HAEPO, GRPO, GSPO and DPO, with and without replay\n"]
    parts.append(INTRODUCTION)
    parts.append("![Held-out reward against tokens and KL](curves.png)\n")
    pairs = {key: runs for key, runs in results.items() if "_pairs" in key[1]}
    sampled = {key: runs for key, runs in results.items() if key not in pairs}
    for task in sorted({task for task, _ in sampled}):
        parts += [f"## {task}\n", table(sampled, task), "", completions(sampled, task), ""]
    for task in sorted({task for task, _ in pairs}):
        parts += [f"## {task}, preference pairs\n", PAIRS_TEXT, table(pairs, task), "", completions(pairs, task), ""]
    if SPEED.exists():
        measured = json.loads(SPEED.read_text())
        parts += ["## Speed\n", SPEED_TEXT.format(**measured), "", speed(measured), ""]
    return "\n".join(parts)


if __name__ == "__main__":
    found = read()
    if not found:
        raise SystemExit("there are no results yet: see run.py")
    draw(found, REPORT.with_name("curves.png"))
    REPORT.write_text(report(found))
    print(f"wrote {REPORT}")
