"""A comparison of algorithms: the settings of its runs, training them in turn, and a table and a document of their results.

jax is imported when the first run begins: mistakes in settings are reported at once.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from haepo_jax.messages import duration, number, short
from haepo_jax.runner.config import ALGORITHM_NAMES, ConfigError, RunConfig, algorithm_class, setting
from haepo_jax.runner.config.arguments import check_form, compose, own_overrides, read_arguments, shell_command
from haepo_jax.runner.config.values import value_text
from haepo_jax.runner.errors import Diverged, Interrupted, disk_errors
from haepo_jax.runner.resume import allowed, existing_run, flat
from haepo_jax.runner.run_dir import (
    RunDir,
    check_run_dir,
    create_run_dir,
    json_text,
    unused_directory,
    write_atomically,
)
from haepo_jax.runner.tables import aligned, interval_text
from haepo_jax.statistics import describe_returns, probability_of_improvement

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

BASELINES = ("haepo", "ppo", "grpo", "dpo")
DEFAULTS = {"num_seeds": 10, "tensorboard": False, "resume": "auto"}
"""Defaults of the runs of a comparison that differ from those of `haepo_jax.train`."""

KEPT = (
    "algo", "env", "seeds", "final_return_greedy_per_seed", "final_eval_episodes", "env_steps_per_seed",
    "updates_per_seed", "diverged", "env_steps_per_second", "compile_seconds", "wall_seconds", "device", "versions",
    "hyperparameters",
)  # fmt: skip
"""What a comparison takes over from the summary of each run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """The settings of `python -m haepo_jax.compare` beside those of its runs. Every algorithm is trained on every
    environment."""

    env: tuple[str, ...] = setting((), list, "the environments: one or more (required)")
    algo: tuple[str, ...] = setting(BASELINES, list, "the algorithms or presets")
    run_dir: str | None = setting(
        None, str, "directory for the results, or of the comparison to resume; null: runs/compare-<time>"
    )


def read_comparison(overrides: tuple[Override, ...]) -> tuple[Path, dict[str, RunConfig]]:
    """The comparison's directory, and the settings of its runs by the names of theirs; raises ConfigError at the first that
    cannot be used."""
    own = [override for override in overrides if override.key_or_group in CompareConfig.__dataclass_fields__]
    settings = compose(own, CompareConfig)
    envs, algos = settings.env, settings.algo
    if not envs:
        raise ConfigError(
            "env= is missing: name one or more environments, for example env=CartPole-v1 (--list-envs lists them)"
        )
    for key, values in (("env", envs), ("algo", algos)):
        if repeated := [value for value in values if values.count(value) > 1]:
            raise ConfigError(f"{key}={','.join(values)} names {repeated[0]!r} twice")
    for algo in algos:
        algorithm_class(algo)

    # `algo.<key>=` is for every algorithm that has the key, `<name>.<key>=` for that one.
    shared: list[Override] = []
    particular: dict[str, list[Override]] = {algo: [] for algo in algos}
    for override in (override for override in overrides if override not in own):
        text = override.input_line or ""
        if override.is_sweep_override():
            raise ConfigError(f"{short(text)}: only env and algo take several values here, see haepo_jax.sweep")
        head, _, name = override.key_or_group.partition(".")
        if not name or head not in ALGORITHM_NAMES:
            shared.append(override)
            continue
        check_form(override)
        if head not in algos:
            raise ConfigError(f"cannot use {short(text)}: {head} is not among the algorithms, algo={','.join(algos)}")
        particular[head] += read_arguments([f"algo.{name}={text.partition('=')[2]}"]).overrides

    directory = Path(settings.run_dir or unused_directory("compare"))
    check_run_dir(str(directory))
    runs: dict[str, RunConfig] = {}
    for env, algo in itertools.product(envs, algos):
        chosen = DEFAULTS | {"env": env, "algo": {"name": algo}}
        try:
            config = compose([*own_overrides(shared, algo, algos), *particular[algo]], RunConfig, chosen)
        except ConfigError as error:
            where = f"{algo}: " if str(error).startswith("algo.") else ""
            raise ConfigError(f"{where}{error}") from None
        name = algo if len(envs) == 1 else f"{algo}-{env.replace('/', '-')}"
        resume = "false" if config.resume == "false" else "auto"  # the later runs have not begun
        runs[name] = config = dataclasses.replace(config, run_dir=str(directory / name), resume=resume)
        if (run := existing_run(resume, config.run_dir)) is None:
            check_run_dir(config.run_dir)
        else:
            allowed(flat(run.read_config()), flat(config), run)
    return directory, runs


def compare(directory: Path, runs: Mapping[str, RunConfig], argv: Sequence[str]) -> None:
    """Trains the runs, by the names of their directories, one after another and writes what comes of them.

    Raises Interrupted at a signal, with the command that resumes the comparison; otherwise as `train_and_report` does.
    """
    from haepo_jax.runner.session import train_and_report

    create_run_dir(str(directory))
    for place, config in enumerate(runs.values(), start=1):
        print(f"[{place}/{len(runs)}] {config.algo.name} on {config.env}", flush=True)
        try:
            train_and_report(config)
        except Diverged as error:
            print(f"note: {error}", file=sys.stderr)
        except Interrupted as interruption:
            others = [argument for argument in argv if not argument.startswith("run_dir=")]
            again = shell_command("haepo_jax.compare", [*others, f"run_dir={value_text(str(directory))}"])
            text = f"the comparison was interrupted in run {place} of {len(runs)}; to resume: {again}"
            raise Interrupted(interruption.signum, text) from None
        print(flush=True)
    _report(directory, runs, argv)


def _report(directory: Path, runs: Mapping[str, RunConfig], argv: Sequence[str]) -> None:
    from haepo_jax.runner.plots import comparison_figure, figure_png

    named = [(config.algo.name, config.env, RunDir(directory / name)) for name, config in runs.items()]
    results = [read_result(run) for _, _, run in named]
    improvement = improvements(results)
    document = {
        "command": shell_command("haepo_jax.compare", argv),
        "machine": machine(),
        "results": results,
        "probability_of_improvement": improvement,
    }
    text = table(results, improvement)
    print(text)
    drawn = [
        (algo, env, run) for algo, env, run in named if run.read_metrics()
    ]  # not what diverged before its first row
    with disk_errors(directory, "comparison"):
        write_atomically(directory / "comparison.json", json_text(document, indent=2) + "\n")
        write_atomically(directory / "comparison.md", f"`{document['command']}`\n\n{text}")
        if drawn:
            write_atomically(directory / "comparison.png", figure_png(comparison_figure(drawn)))
    print(f"comparison.json, comparison.md{' and comparison.png' if drawn else ''} in {directory}")


def read_result(directory: RunDir) -> dict[str, Any]:
    """One algorithm on one environment, from the summary of its run; raises ConfigError."""
    summary = directory.read_summary()
    returns = np.array(summary["final_return_per_seed"], np.float64)
    described = describe_returns(returns)
    return {
        **{key: summary[key] for key in KEPT},
        "final_return_per_seed": returns.tolist(),
        **{key: described[key] for key in ("iqm", "iqm_interval", "mean", "min", "max")},
        "run_dir": directory.path.name,
    }


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
    algos, envs = (list(dict.fromkeys(result[key] for result in results)) for key in ("algo", "env"))
    known = ([value for value in r["final_return_per_seed"] if not np.isnan(value)] for r in results)
    returns = {(r["algo"], r["env"]): values for r, values in zip(results, known, strict=True)}
    ours = "haepo" if "haepo" in algos else algos[0]

    def against(theirs: str, tasks: list[str]) -> dict[str, Any]:
        value, *limits = probability_of_improvement(
            [returns[ours, env] for env in tasks], [returns[theirs, env] for env in tasks]
        )
        return {"probability": value, "interval": limits}

    tasks = {env: [env] for env in envs} | ({"all": envs} if len(envs) > 1 else {})
    over = {theirs: {name: against(theirs, some) for name, some in tasks.items()} for theirs in algos if theirs != ours}
    return {"of": ours, "over": over}


def table(results: Sequence[dict[str, Any]], improvement: dict[str, Any]) -> str:
    """Markdown that also reads well as plain text: one table per environment."""
    over, better = improvement["over"], f"P({improvement['of']} is better)"
    parts = []
    for env in dict.fromkeys(result["env"] for result in results):
        rows, seeds = [], 0
        for result in (result for result in results if result["env"] == env):
            seeds = len(result["seeds"])
            row = {
                "algorithm": result["algo"],
                "final return, IQM": number(result["iqm"]),
                "95% interval": interval_text(result["iqm_interval"]),
                "mean": number(result["mean"]),
                "worst to best seed": interval_text([result["min"], result["max"]]),
                "steps per seed": f"{int(np.mean(result['env_steps_per_seed'])):,}",
                "steps/s, all seeds": number(result["env_steps_per_second"]),
                "time": duration(result["wall_seconds"]),
            }
            if over:
                row[better] = _probability(over[result["algo"]][env]) if result["algo"] in over else ""
            rows.append(row)
        parts.append(f"### {env}, {seeds} seed{'s' if seeds > 1 else ''}\n\n{aligned(rows)}")
    overall = [f"{name} {_probability(chances['all'])}" for name, chances in over.items() if "all" in chances]
    if overall:
        parts.append(f"{better} over all environments: than {'; than '.join(overall)}.")
    parts += [
        f"{result['algo']} on {result['env']}: seed {seed['seed']} diverged in update {seed['update']}."
        for result in results
        for seed in result["diverged"]
    ]
    parts.append(
        "Final returns are means over sampled episodes of each seed's final policy. IQM: interquartile mean over seeds. "
        "Intervals: 95% percentile bootstrap over seeds."
    )
    return "\n\n".join(parts) + "\n"


def _probability(value: dict[str, Any]) -> str:
    low, high = value["interval"]
    interval = "" if np.isnan([low, high]).any() else f" ({low:.2f} to {high:.2f})"
    return "-" if np.isnan(value["probability"]) else f"{value['probability']:.2f}{interval}"
