"""A comparison of algorithms: training its runs in turn, and a table and a JSON document of their results."""

from __future__ import annotations

import dataclasses
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haepo_jax.runner.config import ConfigError, RunConfig
from haepo_jax.runner.config.arguments import command_of
from haepo_jax.runner.config.values import value_text
from haepo_jax.runner.errors import Interrupted, RunError, disk_errors
from haepo_jax.runner.plots import comparison_figure, write_figure
from haepo_jax.runner.progress import duration, number
from haepo_jax.runner.run_dir import RunDir, create_run_dir, json_text, write_atomically
from haepo_jax.runner.session import train_and_report
from haepo_jax.runner.statistics import describe_returns, probability_of_improvement

Array = npt.NDArray[np.float64]

KEPT = (
    "seeds", "final_return_greedy_per_seed", "final_eval_episodes", "env_steps_per_seed", "updates_per_seed", "diverged",
    "env_steps_per_second", "compile_seconds", "wall_seconds", "device", "versions", "hyperparameters",
)  # fmt: skip
"""What a comparison takes over from the summary of each run."""


def compare(directory: Path, runs: Mapping[str, RunConfig], argv: Sequence[str]) -> None:
    """Trains the runs one after another and writes what comes of them.

    Args:
      directory: of the comparison.
      runs: the settings of each by the name of its directory, as `comparison_settings.places` gives them.
      argv: the arguments of `haepo_jax.compare`.

    Raises:
      Interrupted: at a signal, with the command that resumes the comparison. Else as `train_and_report` does.
    """
    create_run_dir(dataclasses.replace(next(iter(runs.values())), run_dir=str(directory), resume="false"))
    for place, config in enumerate(runs.values(), start=1):
        print(f"[{place}/{len(runs)}] {config.algo.name} on {config.env}", flush=True)
        try:
            _train(config)
        except Interrupted as interruption:
            others = [argument for argument in argv if not argument.startswith(("run_dir=", "resume="))]
            again = shlex.join(
                ["python", "-m", "haepo_jax.compare", *others, f"run_dir={value_text(str(directory))}", "resume=true"]
            )
            text = f"the comparison was interrupted in run {place} of {len(runs)}; to resume: {again}"
            raise Interrupted(interruption.signum, text) from None
        print(flush=True)
    _report(directory, runs, argv)


def _train(config: RunConfig) -> None:
    """One run, as `python -m haepo_jax.train` trains or resumes it."""
    assert config.run_dir is not None
    try:
        train_and_report(config, command_of(config))
    except RunError as error:
        # A run in which every seed diverged has ended, and is a result.
        if not RunDir(Path(config.run_dir)).summary.exists():
            raise
        print(f"note: {error}", file=sys.stderr)


def _report(directory: Path, runs: Mapping[str, RunConfig], argv: Sequence[str]) -> None:
    results = [read_result(c.algo.name, c.env, RunDir(directory / name)) for name, c in runs.items()]
    improvement = improvements(results)
    document = {
        "command": shlex.join(["python", "-m", "haepo_jax.compare", *argv]),
        "machine": machine(),
        "results": results,
        "probability_of_improvement": improvement,
    }
    text = table(results, improvement)
    figure = comparison_figure([(c.algo.name, c.env, RunDir(directory / name)) for name, c in runs.items()])
    with disk_errors(directory, "comparison"):
        write_atomically(directory / "comparison.json", json_text(document, indent=2) + "\n")
        write_atomically(directory / "comparison.md", f"`{document['command']}`\n\n{text}")
        write_figure(figure, directory / "comparison.png")
    print(text)
    print(f"comparison.json, comparison.md and comparison.png in {directory}")


def read_result(algo: str, env: str, directory: RunDir) -> dict[str, Any]:
    """One algorithm on one environment, from the summary of its run; raises ConfigError."""
    summary = directory.read_summary()
    try:
        returns = np.array(summary["final_return_per_seed"], np.float64)
        described = describe_returns(returns)
        return {
            "algo": algo,
            "env": env,
            **{key: summary[key] for key in KEPT},
            "final_return_per_seed": returns.tolist(),
            **{key: described[key] for key in ("iqm", "iqm_interval", "mean")},
            "run_dir": directory.path.name,
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{str(directory.summary)!r} is no summary of a run that ended ({error!r})") from None


def machine() -> dict[str, Any]:
    """What the numbers were measured on; the devices are in each result."""
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cpu_count": os.cpu_count(),
        "python": platform.python_version(),
    }


def improvements(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The probability that a seed of HAEPO (of the first algorithm, where HAEPO is not there) ends with a higher return
    than a seed of each other one: per environment and, where there are several, over all of them."""
    algos = list(dict.fromkeys(result["algo"] for result in results))
    envs = list(dict.fromkeys(result["env"] for result in results))
    returns = {(r["algo"], r["env"]): _known(r["final_return_per_seed"]) for r in results}
    ours = "haepo" if "haepo" in algos else algos[0]

    def compare(theirs: str, tasks: list[str]) -> dict[str, Any]:
        value, low, high = probability_of_improvement(
            [returns[ours, env] for env in tasks], [returns[theirs, env] for env in tasks]
        )
        return {"probability": value, "interval": [low, high]}

    over = {}
    for theirs in algos:
        if theirs != ours:
            over[theirs] = {env: compare(theirs, [env]) for env in envs}
            if len(envs) > 1:
                over[theirs]["all"] = compare(theirs, envs)
    return {"of": ours, "over": over}


def _known(values: Sequence[float]) -> Array:
    array = np.asarray(values, np.float64)
    return array[~np.isnan(array)]


def table(results: Sequence[dict[str, Any]], improvement: dict[str, Any]) -> str:
    """Markdown that also reads well as plain text: one table per environment."""
    ours = improvement["of"]
    several = any(len(result["seeds"]) > 1 for result in results)
    header = [
        "algorithm",
        "final return, IQM",
        "95% interval",
        "mean",
        "worst to best seed",
        "steps per seed",
        "steps/s, all seeds",
        "time",
    ]
    header += [f"P({ours} is better)"] if improvement["over"] else []
    parts = []
    for env in dict.fromkeys(result["env"] for result in results):
        rows = [header]
        for result in (result for result in results if result["env"] == env):
            returns = _known(result["final_return_per_seed"])
            row = [
                result["algo"],
                number(result["iqm"]),
                _interval(result["iqm_interval"]),
                number(result["mean"]),
                f"{number(returns.min())} to {number(returns.max())}" if len(returns) else "-",
                f"{int(np.mean(result['env_steps_per_seed'])):,}",
                number(result["env_steps_per_second"]),
                duration(result["wall_seconds"]),
            ]
            if improvement["over"]:
                row.append(_probability(improvement["over"].get(result["algo"], {}).get(env)))
            rows.append(row)
        seeds = len(next(result["seeds"] for result in results if result["env"] == env))
        parts.append(f"### {env}, {seeds} seed{'s' if seeds > 1 else ''}\n\n{_aligned(rows)}")
    overall = [f"{name} {_probability(over['all'])}" for name, over in improvement["over"].items() if "all" in over]
    if overall:
        parts.append(f"P({ours} is better) over all environments: than {'; than '.join(overall)}.")
    parts += [
        f"{result['algo']} on {result['env']}: seed {seed['seed']} diverged in update {seed['update']}."
        for result in results
        for seed in result["diverged"]
    ]
    note = (
        "Final returns are means over sampled episodes of each seed's final policy. IQM: interquartile mean over seeds."
    )
    if several:
        note += " Intervals: 95% percentile bootstrap over seeds."
    parts.append(note)
    return "\n\n".join(parts) + "\n"


def _interval(limits: Sequence[float]) -> str:
    return "-" if np.isnan(limits).any() else f"{number(limits[0])} to {number(limits[1])}"


def _probability(value: dict[str, Any] | None) -> str:
    if value is None:
        return ""
    low, high = value["interval"]
    interval = "" if np.isnan([low, high]).any() else f" ({low:.2f} to {high:.2f})"
    return "-" if np.isnan(value["probability"]) else f"{value['probability']:.2f}{interval}"


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    # Names to the left, numbers to the right.
    lines = [[row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))] for row in rows]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])
