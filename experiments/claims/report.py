"""Figures, and the tables of the report and of the README, from the stored results alone.

`python experiments/claims/report.py` writes both; `report.py small` draws the small suite's figures beside its results.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import catalogue
import numpy as np
import numpy.typing as npt
import scipy.stats
from catalogue import (
    ABLATION_STEPS,
    ABLATIONS,
    CHOSEN,
    DEEP_SEA,
    DEVELOPMENT,
    EPISODIC,
    EPISODIC_STEPS,
    HELD_OUT,
    HELD_OUT_METHODS,
    LARGER_METHODS,
    METHODS,
    SMALL_ADVANTAGES,
    TASKS,
    WEIGHTS,
)

from haepo_jax.statistics import bootstrap_interval, interquartile_mean, mean_of_known, probability_of_improvement

sys.path[:0] = [str(Path(__file__).parents[1])]

from tables import filled_in as with_table  # noqa: E402
from tables import markdown  # noqa: E402

HERE = Path(__file__).parent
BASELINES = ("haepo_default", *catalogue.BASELINES)
CLIP = "clip on HAEPO's replay"
HEADLINES = [
    ("haepo_default", "ppo_default", ""),
    ("haepo", "ppo", ""),
    ("haepo", "ppo_replay_tuned", ""),
    ("haepo_default", "ppo", ""),
    ("haepo_default", "ppo_replay_tuned", ""),
    ("haepo_searched", "ppo_replay_searched", ""),
    ("haepo_default", "ppo_default", "held out"),
    ("haepo_searched", "ppo_replay_searched", "held out"),
]
"""The pairings that the README shows."""
COMPARISONS = [
    *HEADLINES,
    ("haepo_default", "ppo_replay", ""),
    ("haepo_default", "ppo_replay_searched", ""),
    ("haepo_searched", "ppo_default", ""),
    ("haepo_default", CLIP, "held out"),
    ("haepo_default", "ppo_replay_searched", "held out"),
    ("haepo_searched", "ppo_default", "held out"),
]
COMPARED = {
    "haepo_default": "default",
    "haepo": "tuned on each task",
    "ppo_default": "default",
    "ppo": "tuned on each task",
    "ppo_replay_tuned": "with replay, tuned on each task",
    "ppo_replay": "clip with HAEPO's replay buffer and settings",
    CLIP: "clip with HAEPO's replay buffer and settings",
    "haepo_searched": "one setting, by search",
    "ppo_replay_searched": "with replay, one setting, by search",
}
DOCUMENTS = (HERE / "README.md", HERE.parents[1] / "README.md")
Array = npt.NDArray[np.float64]
Result = dict[str, Any]


def load(folder: Path) -> list[Result]:
    """The results of a folder, in the catalogue's order as far as its names go, without the noise of a task's evaluation."""
    order = {name: number for number, name in enumerate((*TASKS, *HELD_OUT, *METHODS, *ABLATIONS, *EPISODIC))}
    results = [json.loads(path.read_text()) | {"file": path.name} for path in sorted(folder.glob("*.json"))]
    for result in results:
        if "eval_return" in result and task_of(result) in TASKS:
            result["eval_return"] = without_noise(task_of(result), result["eval_return"])
    return sorted(results, key=lambda r: (order.get(task_of(r), 99), order.get(r.get("method", r.get("ablation")), 99)))


def without_noise(task: str, returns: list[list[float | None]]) -> list[list[float | None]]:
    """Evaluation returns (seeds, rows) less what the task's evaluation pays above the mean."""
    return [[None if x is None else x - TASKS[task].noise for x in row] for row in returns]


def task_of(result: Result) -> str:
    """The task's name in the catalogue, from the file's."""
    return str(result["file"].partition(".")[0])


def array(result: Result, name: str) -> Array:
    """A stored (seeds, rows) array; NaN where there was no number."""
    return np.array([[np.nan if x is None else x for x in row] for row in result[name]], np.float64)


def scores(result: Result) -> Array:
    """Evaluation returns (seeds, rows), 0 at the task's floor and 1 at its top."""
    task = result["task"]
    return (array(result, "eval_return") - task["floor"]) / (task["top"] - task["floor"])


def evaluations(result: Result) -> list[tuple[Array, Array]]:
    """The steps and returns of every seed's evaluations. A row that a large batch repeats is one evaluation."""
    curves = zip(array(result, "env_steps"), array(result, "eval_return"), strict=True)
    return [(steps[first], returns[first]) for steps, returns in curves for first in [np.diff(steps, prepend=-1) > 0]]


def areas(result: Result) -> Array:
    """The mean of every seed's curve over its steps, (seeds,): linear from one evaluation to the next, and from the task's floor
    at the first step where it has one."""
    floor, found = result.get("task", {}).get("floor"), []
    for steps, returns in evaluations(result):
        if floor is None:
            steps, returns = steps[np.isfinite(returns)], returns[np.isfinite(returns)]
        else:
            steps, returns = np.append(0.0, steps), np.append(floor, np.where(np.isnan(returns), floor, returns))
        found.append(np.trapezoid(returns, steps) / (steps[-1] - steps[0]))
    return np.array(found)


def mean_scores(result: Result) -> Array:
    """`areas`, 0 at the task's floor and 1 at its top."""
    task = result["task"]
    return (areas(result) - task["floor"]) / (task["top"] - task["floor"])


def steps_to_threshold(result: Result) -> Array:
    """Live steps (seeds,) at the first evaluation that, averaged with the next one, reaches the threshold, or at the last one if
    it reaches it; else inf.

    Two evaluations of 16 episodes each: one alone would call a lucky evaluation a solution.
    """
    found = []
    for steps, returns in evaluations(result):
        smooth = np.append((returns[:-1] + returns[1:]) / 2, returns[-1])
        reached = smooth >= result["task"]["threshold"]
        found.append(steps[np.argmax(reached)] if reached.any() else np.inf)
    return np.array(found)


def median_interval(values: Array, resamples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """The median and its 95% percentile bootstrap interval; values may be inf."""
    drawn = np.random.default_rng(seed).choice(values, (resamples, len(values)))
    medians = np.sort(np.quantile(drawn, 0.5, axis=1, method="higher"))
    low, high = medians[int(0.025 * resamples)], medians[int(0.975 * resamples) - 1]
    return float(np.quantile(values, 0.5, method="higher")), float(low), float(high)


def difference_of_medians(first: Array, second: Array, resamples: int = 4000) -> tuple[float, float]:
    """95% percentile bootstrap interval of median(first) - median(second); values may be inf. The difference of two infinite
    medians counts as 0, and an end of the interval is infinite where seeds of one side never arrive."""
    generator = np.random.default_rng(0)
    one, other = (
        np.quantile(generator.choice(x, (resamples, len(x))), 0.5, axis=1, method="higher") for x in (first, second)
    )
    with np.errstate(invalid="ignore"):
        drawn = np.where(one == other, 0.0, one - other)
    low, high = np.sort(drawn)[[int(0.025 * resamples), int(0.975 * resamples) - 1]]
    return float(low), float(high)


def _steps(value: float, budget: float) -> str:
    return f"{value / 1000:.1f}" if np.isfinite(value) else f"> {budget / 1000:.0f}"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _by(results: list[Result], key: str) -> dict[str, dict[str, Result]]:
    """{task: {method or ablation: result}}."""
    found: dict[str, dict[str, Result]] = {}
    for result in results:
        found.setdefault(task_of(result), {})[result[key]] = result
    return found


def _known(results: list[Result]) -> list[str]:
    """The methods that there are results of."""
    return [name for name in METHODS if any(result["method"] == name for result in results)]


def _only(results: list[Result], methods: Iterable[str]) -> list[Result]:
    return [result for result in results if result["method"] in methods]


# Tables; each takes all results of its kind.


def threshold_table(results: list[Result]) -> str:
    """Thousands of steps to the threshold, median over seeds with its interval; how many seeds reached it. The lowest median of
    the methods with nine seeds of ten is bold."""
    rows, known = [], _known(results)
    for task, methods in _by(results, "method").items():
        cells = [f"{task} ({next(iter(methods.values()))['task']['threshold']:g})"]
        arrived = {name: steps_to_threshold(r) for name, r in methods.items()}
        medians = {name: median_interval(steps) for name, steps in arrived.items()}
        reliable = [median for name, (median, _, _) in medians.items() if np.isfinite(arrived[name]).mean() >= 0.9]
        best = min(reliable, default=np.inf)
        for name in known:
            if name not in methods:
                cells.append("")
                continue
            result, (median, low, high) = methods[name], medians[name]
            budget = result["task"]["total_steps"]
            text = _steps(median, budget)
            if np.isfinite(low):
                text += f" ({_steps(low, budget)} to {_steps(high, budget)})"
            reached = int(np.isfinite(arrived[name]).sum())
            text = f"**{text}**" if median == best and np.isfinite(best) else text
            cells.append(f"{text} {reached}/{len(result['seeds'])}")
        rows.append(cells)
    return markdown(["task (threshold)", *known], rows)


def baselines_table(results: list[Result]) -> str:
    """The same of HAEPO's default and the algorithms that are not HAEPO."""
    return threshold_table(_only(results, BASELINES))


def final_table(results: list[Result]) -> str:
    """The last evaluation: interquartile mean with its interval, and the worst seed."""
    rows, known = [], _known(results)
    for task, methods in _by(results, "method").items():
        cells = [task]
        for name in known:
            if name not in methods:
                cells.append("")
                continue
            last = array(methods[name], "eval_return")[:, -1]
            low, high = bootstrap_interval(last)
            cells.append(
                f"{_number(float(interquartile_mean(last)))} ({_number(float(low))} to {_number(float(high))}), "
                f"worst {_number(float(last.min()))}"
            )
        rows.append(cells)
    return markdown(["task", *known], rows)


def summary_table(results: list[Result]) -> str:
    """Over all tasks that a method has: area under the curve, robustness, probability of improvement."""
    by_task = {task: methods for task, methods in _by(results, "method").items()}
    rows = []
    for name in _known(results):
        own = {task: methods[name] for task, methods in by_task.items() if name in methods}
        area = np.array([mean_scores(r) for r in own.values()])
        low, high = stratified_interval(area)
        solved = [share for r in own.values() for share in r["sweep"].get("solved", [])]
        rows.append(
            [
                name,
                str(len(own)),
                f"{float(interquartile_mean(area.reshape(-1))):.2f} ({low:.2f} to {high:.2f})",
                f"{100 * np.mean(solved):.0f}% of {len(solved)}" if solved else "",
                *("" if name == ours else _better(by_task, ours, name) for ours in ("haepo_default", "haepo")),
            ]
        )
    head = [
        "method", "tasks", "area under the curve", "configurations that solve",
        "P(haepo_default better)", "P(haepo better)",
    ]  # fmt: skip
    return markdown(head, rows)


def _better(by_task: dict[str, dict[str, Result]], ours: str, other: str) -> str:
    """How often a run of the first method has the better curve, on the tasks of both; nothing if there are none."""
    both = [methods for methods in by_task.values() if ours in methods and other in methods]
    if not both:
        return ""
    chance, low, high = probability_of_improvement(*([areas(m[name]) for m in both] for name in (ours, other)))
    return f"{chance:.2f} ({low:.2f} to {high:.2f})"


def comparison_table(
    results: list[Result], held_out: list[Result], pairings: Iterable[tuple[str, str, str]] = COMPARISONS
) -> str:
    """How often a run of HAEPO has a better curve than one of PPO, in each pairing, and on how many tasks it reaches the
    threshold earlier and later."""
    rows = []
    parts = {
        "of other libraries": [r for r in results if not TASKS[task_of(r)].env.startswith("haepo/")],
        "that are not development tasks": [r for r in results if task_of(r) not in DEVELOPMENT],
    }
    some = {
        f"on the {len(by_task)} {name}": by_task for name, part in parts.items() for by_task in [_by(part, "method")]
    }
    for ours, other, tasks in sorted(pairings, key=lambda pairing: pairing[2]):  # held-out tasks last
        count, seeds, better, places = _pairing(held_out if tasks == "held out" else results, ours, other)
        split = ["" if tasks == "held out" else _better(by_task, ours, other) for by_task in some.values()]
        rows.append([COMPARED[ours], COMPARED[other], f"{count} {tasks}".strip(), seeds, better, *split, places])
    head = ["HAEPO", "PPO", "tasks", "seeds", "P(HAEPO better)", *some]
    return markdown([*head, "earlier / undecided / later"], rows)


def headlines_table(results: list[Result], held_out: list[Result]) -> str:
    """The same, in short."""
    return comparison_table(results, held_out, HEADLINES)


def _probabilities(pairs: list[tuple[Result, Result]]) -> list[str]:
    """P(the first better) of each pair of results, of their curves; bold where they differ by a two-sided Mann-Whitney test at 5%,
    corrected for the number of pairs (Holm)."""
    curves = [(areas(one), areas(other)) for one, other in pairs]
    p_values = [scipy.stats.mannwhitneyu(*both, alternative="two-sided").pvalue for both in curves]
    chances = [f"{probability_of_improvement([one], [other])[0]:.2f}" for one, other in curves]
    for rank, i in enumerate(np.argsort(p_values)):
        if p_values[i] * (len(pairs) - rank) > 0.05:
            break
        chances[i] = f"**{chances[i]}**"
    return chances


def by_task_table(results: list[Result]) -> str:
    """P(HAEPO better) on every task, of the pairings of `COMPARISONS` on them; see `_probabilities`."""
    by_task = _by(results, "method")
    rows = [
        [COMPARED[ours], COMPARED[other], *_probabilities([(known[ours], known[other]) for known in by_task.values()])]
        for ours, other, tasks in COMPARISONS
        if not tasks and {ours, other} <= {*_known(results)}
    ]
    return markdown(["HAEPO", "PPO", *by_task], rows)


def episodes_table(results: list[Result]) -> str:
    """The same of `haepo_episodic` and the other methods on complete episodes, on the tasks where their searches are alike."""
    alike = [result for result in results if task_of(result) in DEVELOPMENT]
    rows = [
        ["haepo_episodic", other, *_pairing(alike, "haepo_episodic", other)] for other in ("grpo", "dpo", "haepo_paper")
    ]
    return markdown(["", "", "tasks", "seeds", "P(better)", "earlier / undecided / later"], rows)


def _pairing(results: list[Result], ours: str, other: str) -> list[str]:
    by_task = _by(results, "method")
    both = [methods for methods in by_task.values() if ours in methods and other in methods]
    seeds = {len(methods[name]["seeds"]) for methods in both for name in (ours, other)}
    when = [_earlier(methods[ours], methods[other]) for methods in both if "task" in methods[ours]]
    places = " / ".join(str(when.count(sign)) for sign in (1, 0, -1)) if when else ""
    return [str(len(both)), "/".join(map(str, sorted(seeds))), _better(by_task, ours, other), places]


def _earlier(ours: Result, other: Result) -> int:
    """1 where the first of two results reaches the threshold earlier, -1 where it does later, 0 where the interval of the
    difference of medians contains 0."""
    low, high = difference_of_medians(steps_to_threshold(ours), steps_to_threshold(other))
    return int(high < 0) - int(low > 0)


def seconds_to_threshold(result: Result, update: dict[str, float]) -> Array:
    """Seconds (seeds,) that the updates up to the threshold take; inf where a seed never reaches it."""
    return steps_to_threshold(result) * update["seconds"] / update["steps"]


def seconds_table(results: list[Result], times: list[Result]) -> str:
    """Seconds to the threshold, median over seeds with its interval, and milliseconds of an update; whether HAEPO is earlier or
    later than tuned PPO, by the interval of the difference of medians."""
    by_task, rows = _by(results, "method"), []
    for updates in times:
        found = {
            name: seconds_to_threshold(by_task[task_of(updates)][name], update)
            for name, update in updates["updates"].items()
        }
        cells = [task_of(updates)]
        for name, seconds in found.items():
            middle, low, high = (f"{x:.2f}" if np.isfinite(x) else "never" for x in median_interval(seconds))
            cells.append(f"{middle} ({low} to {high}), {1e3 * updates['updates'][name]['seconds']:.1f} ms")
        for ours in ("haepo_default", "haepo"):
            earliest, latest = difference_of_medians(found[ours], found["ppo"])
            cells.append("earlier" if latest < 0 else "later" if earliest > 0 else "undecided")
        rows.append(cells)
    return markdown(["task", *times[0]["updates"], "haepo_default against ppo", "haepo against ppo"], rows)


def choice_table(results: list[Result]) -> str:
    """The default of a method beside the best of its search: mean scores over the development tasks, of the search's two
    seeds and of others, the latter by task too."""
    rows = []
    for method in CHOSEN:
        own = [result for result in results if result["method"] == method]
        for name in own[0]["configurations"] if own else ():
            config = own[0]["configurations"][name]
            again = [float(np.mean(result["scores"][name])) for result in own]
            searched = [result["searched"].get(name, np.nan) for result in own]
            first = f"{np.mean(searched):.3f}" if np.isfinite(searched).all() else ""
            settings = ", ".join(f"{k} {v:.2g}" if isinstance(v, float) else f"{k} {v}" for k, v in config.items())
            rows.append([method, settings or name, first, f"{np.mean(again):.3f}", *(f"{mean:.2f}" for mean in again)])
    return markdown(["method", "setting", "search", "again", *dict.fromkeys(map(task_of, results))], rows)


def held_out_table(results: list[Result]) -> str:
    """`_settings_table` of the held-out tasks, and the probabilities over all of them."""
    return _settings_table(results, HELD_OUT_METHODS, summed=True)


def larger_table(results: list[Result]) -> str:
    """`_settings_table` of the larger tasks."""
    return _settings_table(results, LARGER_METHODS, summed=False)


def games_table(results: list[Result]) -> str:
    """The same of PPO's published settings for MinAtar, beside HAEPO with their batches."""
    ours, others = "haepo_minatar", ("haepo_default", "ppo, published")
    rows = []
    for task, methods in _complete(results, (*others, ours)).items():
        chances = [
            f"{probability_of_improvement([areas(methods[ours])], [areas(methods[name])])[0]:.2f}" for name in others
        ]
        rows.append([task, *(_middle(methods[name]) for name in (*others, ours)), *chances])
    return markdown(["task", *others, ours, *(f"P({ours} better than {name})" for name in others)], rows)


def falls_table(results: list[Result]) -> str:
    """How many seeds forget, see `_falls`, and how many have at the end."""
    rows = []
    for task, methods in _by(results, "method").items():
        falls = [_falls(methods[name]) if name in methods else None for name in LARGER_METHODS]
        rows.append([task, *("" if x is None else f"{np.sum(x.any(axis=1))}, {np.sum(x[:, -1])}" for x in falls)])
    return markdown(["task", *LARGER_METHODS], rows)


def small_advantages_table(larger: list[Result], results: list[Result]) -> str:
    """Mean of the curve and the last evaluation, means over seeds, and how many seeds forget, with and without a smallest number
    that advantages are divided by."""
    names = sorted(("haepo_default", "ppo_replay_searched", *SMALL_ADVANTAGES))
    rows = [
        [task, *(f"{_middle(methods[name])}; {np.sum(_falls(methods[name]).any(axis=1))}" for name in names)]
        for task, methods in _complete([*larger, *results], names).items()
    ]
    return markdown(["task", *names], rows)


def long_table(results: list[Result]) -> str:
    """Mean of the curve and the last evaluation, means over seeds; how many seeds forget, see `_falls`, and in which share of their
    evaluations they have."""
    rows = []
    for result in results:
        falls = _falls(result)
        forget = f"{np.sum(falls.any(axis=1))} of {len(falls)}"
        rows.append([result["method"], _middle(result), forget, f"{100 * falls.mean():.1f}%"])
    return markdown(["method", "mean, last", "seeds that forget", "evaluations"], rows)


def _complete(results: list[Result], names: Iterable[str]) -> dict[str, dict[str, Result]]:
    """`_by` method, of the tasks that all of the named ones have results of."""
    return {task: methods for task, methods in _by(results, "method").items() if methods.keys() >= set(names)}


def _falls(result: Result) -> npt.NDArray[np.bool_]:
    """Evaluations (seeds, rows) that are below the best one before them by more than half of all that was gained."""
    curves = array(result, "eval_return")
    best = np.maximum.accumulate(curves, axis=1)
    fallen: npt.NDArray[np.bool_] = (best - curves) > 0.5 * (best[:, -1:] - curves[:, :1])
    return fallen


def _middle(result: Result) -> str:
    """Mean of the curve and the last evaluation, means over seeds."""
    last = array(result, "eval_return")[:, -1]
    return ", ".join(map(_number, (float(areas(result).mean()), float(last.mean()))))


def _settings_table(results: list[Result], known: Iterable[str], summed: bool) -> str:
    """Mean of the curve and the last evaluation, means over seeds; and how often a run of HAEPO's default has the better
    curve, and one of the setting that a search found than PPO's; see `_probabilities`."""
    by_task = _complete(results, known if summed else ())  # a sum needs every method on every task
    ours, *others = known
    pairs = [*((ours, other) for other in others), ("haepo_searched", "ppo_replay_searched")]
    rows = {
        task: [task, *(_middle(methods[name]) if name in methods else "" for name in known)]
        for task, methods in by_task.items()
    }
    for one, other in pairs:
        both = {task: (has[one], has[other]) for task, has in by_task.items() if one in has and other in has}
        chances = dict(zip(both, _probabilities(list(both.values())), strict=True))
        for task, row in rows.items():
            row.append(chances.get(task, ""))
    lines = list(rows.values())
    if summed:
        without = {task: {t: methods for t, methods in by_task.items() if t != task} for task in by_task}
        lowest = (min((_better(rest, *pair), task) for task, rest in without.items()) for pair in pairs)
        nothing = [""] * (1 + len(others))
        lines.append(["all", *nothing, *(_better(by_task, *pair) for pair in pairs)])
        lines.append(["all but the most favourable", *nothing, *(f"{chance} ({task})" for chance, task in lowest)])
    return markdown(["task", ours, *others, *(f"P({one} better than {other})" for one, other in pairs)], lines)


def stratified_interval(values: Array, resamples: int = 2000) -> tuple[float, float]:
    """95% interval of the interquartile mean over all entries, seeds resampled within each task: (tasks, seeds)."""
    generator = np.random.default_rng(0)
    tasks, seeds = values.shape
    drawn = generator.integers(0, seeds, (resamples, tasks, seeds))
    means = interquartile_mean(values[np.arange(tasks)[:, None], drawn].reshape(resamples, -1))
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def _area(result: Result) -> str:
    area = mean_scores(result)
    low, high = bootstrap_interval(area)
    return f"{float(interquartile_mean(area)):.2f} ({float(low):.2f} to {float(high):.2f})"


def weights_table(results: list[Result]) -> str:
    """HAEPO's softmax and uniform weights on every task: area under the normalised curve."""
    by_task = _by(results, "ablation")
    rows = (
        [task, *(_area(found[name]) if name in found else "" for name in WEIGHTS)] for task, found in by_task.items()
    )
    return markdown(["task", "softmax (default)", *WEIGHTS[1:]], rows)


def ablation_table(
    results: list[Result], names: Iterable[str] = ABLATIONS, tasks: Iterable[str] = ABLATION_STEPS
) -> str:
    """The defaults with one thing changed: area under the normalised curve, and steps to the threshold."""
    by_task, rows = _by(results, "ablation"), []
    for name in names:
        cells = [name]
        for task in tasks:
            result = by_task.get(task, {}).get(name)
            if result is None:
                cells += ["", ""]
                continue
            steps = median_interval(steps_to_threshold(result))[0]
            cells += [_area(result), _steps(steps, result["task"]["total_steps"])]
        rows.append(cells)
    return markdown(["changed", *(f"{t}: {w}" for t in tasks for w in ("area", "steps"))], rows)


def episodic_table(results: list[Result]) -> str:
    """The same of `EpisodicHAEPO`."""
    return ablation_table(results, EPISODIC, EPISODIC_STEPS)


def deep_sea_table(results: list[Result]) -> str:
    """How many seeds found the treasure, by the sea's depth (the last evaluation above half of it), and the mean share
    of its cells that were seen."""
    found: dict[str, dict[int, str]] = {}
    for result in results:
        last, seen = array(result, "eval_return_greedy")[:, -1], array(result, "covered")[:, -1]
        cell = f"{int((last > 0.5).sum())}/{len(last)}, {100 * seen.mean():.0f}%"
        found.setdefault(result["method"], {})[int(task_of(result))] = cell
    sizes = sorted({size for row in found.values() for size in row})
    return markdown(
        ["method", *map(str, sizes)],
        ([name, *(found[name].get(size, "") for size in sizes)] for name in DEEP_SEA if name in found),
    )


def alignment_table(results: list[Result]) -> str:
    """Rank correlations with the return of fresh episodes, means over a run, then over seeds: of what an update adds to their
    log-likelihood, with the lowest and the highest seed, and of the log-likelihood itself."""
    known = sorted({result["method"] for result in results})
    rows = []
    for task, methods in _by(results, "method").items():
        cells = [task]
        for name in known:
            if name not in methods:
                cells.append("")
                continue
            kinds = ("alignment_update", "alignment_likelihood")
            added, itself = (mean_of_known(array(methods[name], kind)) for kind in kinds)
            spread = f"{np.nanmin(added):+.2f} to {np.nanmax(added):+.2f}"
            cells.append(f"{mean_of_known(added):+.2f} ({spread}) / {mean_of_known(itself):+.2f}")
        rows.append(cells)
    return markdown(["task", *known], rows)


TABLES: dict[str, tuple[tuple[str, ...], Callable[..., str]]] = {
    "comparison": (("methods", "held_out"), comparison_table),
    "headlines": (("methods", "held_out"), headlines_table),
    "by task": (("methods",), by_task_table),
    "episodes": (("methods",), episodes_table),
    "baselines": (("methods",), baselines_table),
    "thresholds": (("methods",), threshold_table),
    "final": (("methods",), final_table),
    "summary": (("methods",), summary_table),
    "seconds": (("methods", "seconds"), seconds_table),
    "choice": (("choice",), choice_table),
    "held out": (("held_out",), held_out_table),
    "larger": (("larger",), larger_table),
    "games": (("larger",), games_table),
    "falls": (("larger",), falls_table),
    "small advantages": (("larger", "small_advantages"), small_advantages_table),
    "long": (("long",), long_table),
    "alignment": (("probes",), alignment_table),
    "weights": (("ablations",), weights_table),
    "ablations": (("ablations",), ablation_table),
    "episodic": (("episodic",), episodic_table),
    "deep_sea": (("deep_sea",), deep_sea_table),
}


def tables(folder: Path) -> dict[str, str]:
    """The tables, by name, that there are results of."""
    results = {name: [load(folder / kind) for kind in kinds] for name, (kinds, _) in TABLES.items()}
    return {name: TABLES[name][1](*found) for name, found in results.items() if all(found)}


def filled_in(text: str, folder: Path) -> str:
    """A document with every `<!-- table: name -->` followed by that table, up to the next empty line."""
    for name, table in tables(folder).items():
        text = with_table(text, name, table)
    return text


# Figures.


def draw(folder: Path, to: Path) -> list[Path]:
    """Draws what there are results for; returns the files."""
    import matplotlib

    matplotlib.use("agg")
    to.mkdir(exist_ok=True)
    makers: dict[tuple[str, ...], tuple[Callable[..., Any], ...]] = {
        ("methods",): (_curves, _forms, _entropy, _profile), ("methods", "seconds"): (_seconds,),
        ("ablations",): (_ablation_bars,),
    }  # fmt: skip
    written = []
    for kinds, drawers in makers.items():
        results = [load(folder / kind) for kind in kinds]
        for drawer in drawers if all(results) else ():
            path = to / f"{drawer.__name__.strip('_')}.png"
            drawer(*results).savefig(path, dpi=110, bbox_inches="tight")
            written.append(path)
    return written


def _curves(results: list[Result]) -> Any:
    return _by_task(_only(results, BASELINES), "eval_return", "return")


def _forms(results: list[Result]) -> Any:
    return _by_task([result for result in results if "haepo" in result["method"]], "eval_return", "return")


def _entropy(results: list[Result]) -> Any:
    return _by_task(_only(results, BASELINES), "entropy", "entropy of the policy (nats)")


def _by_task(results: list[Result], measure: str, label: str) -> Any:
    from matplotlib.figure import Figure

    by_task = _by(results, "method")
    columns = 4
    rows = -(-len(by_task) // columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    for place, (task, methods) in enumerate(by_task.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        for name, result in methods.items():
            steps, values = array(result, "env_steps").mean(axis=0) / 1000, array(result, measure).T
            low, high = bootstrap_interval(values, resamples=500)
            axes.plot(steps, interquartile_mean(values), color=METHODS[name].colour, label=name)
            axes.fill_between(steps, low, high, color=METHODS[name].colour, alpha=0.2, linewidth=0)
        if measure == "eval_return":
            axes.axhline(result["task"]["threshold"], color="grey", linewidth=0.8, linestyle="dotted")
        axes.set_title(task)
        axes.set_xlabel("thousand steps")
        axes.set_ylabel(label)
    if figure.axes:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _seconds(results: list[Result], times: list[Result]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes, by_task = figure.add_subplot(), _by(results, "method")
    for updates, marker in zip(times, "os^Dv*Pp<>Xh", strict=False):
        axes.plot([], [], marker, color="black", label=task_of(updates))
        for name, update in updates["updates"].items():
            result = by_task[task_of(updates)][name]
            measures = steps_to_threshold(result), seconds_to_threshold(result, update)
            axes.plot(*(median_interval(values)[0] for values in measures), marker, color=METHODS[name].colour)
    for name in times[0]["updates"]:
        axes.plot([], [], color=METHODS[name].colour, linewidth=4, label=name)
    axes.set(xscale="log", yscale="log", xlabel="environment steps to the threshold", ylabel="seconds on two CPU cores")
    axes.set_xticks([2000, 5000, 10_000, 20_000], ["2k", "5k", "10k", "20k"])
    axes.set_yticks([0.05, 0.1, 0.2, 0.5, 1], ["0.05", "0.1", "0.2", "0.5", "1"])
    axes.minorticks_off()
    figure.legend(loc="outside right center")
    return figure


def _profile(results: list[Result]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    at = np.linspace(0, 1, 101)
    for name, method in METHODS.items():
        found = [mean_scores(r) for r in results if r["method"] == name]
        if found:
            share = np.mean([[(area > x).mean() for x in at] for area in found], axis=0)
            axes.plot(at, share, color=method.colour, label=name)
    axes.set_xlabel("area under the normalised curve")
    axes.set_ylabel("share of runs above it, mean over tasks")
    axes.legend()
    return figure


def _ablation_bars(results: list[Result]) -> Any:
    from matplotlib.figure import Figure

    by_task = {task: found for task, found in _by(results, "ablation").items() if task in ABLATION_STEPS}
    figure = Figure(figsize=(4 * len(by_task) + 2, 6), layout="constrained")
    names = [name for name in ABLATIONS if any(name in found for found in by_task.values())]
    for place, (task, found) in enumerate(by_task.items(), start=1):
        axes = figure.add_subplot(1, len(by_task), place)
        for row, name in enumerate(names):
            if name not in found:
                continue
            area = mean_scores(found[name])
            (low, high), middle = bootstrap_interval(area), float(interquartile_mean(area))
            colour = "tab:red" if name == "default" else "tab:grey" if "uniform" in name else "tab:blue"
            axes.barh(row, middle, color=colour, xerr=[[middle - float(low)], [float(high) - middle]], capsize=2)
        axes.set_yticks(range(len(names)), names if place == 1 else [""] * len(names))
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_title(task)
        axes.set_xlabel("area under the normalised curve")
    return figure


def main(argv: list[str]) -> int:
    """Draws, and where the suite is the full one fills in the report's tables."""
    small = argv == ["small"]
    if argv and not small:
        print(f"error: {argv[0]!r} is no suite: write small, or nothing", file=sys.stderr)
        return 2
    folder = HERE / "results" / "small" if small else HERE / "results"
    for path in draw(folder, folder if small else HERE / "figures"):
        print(path)
    if small:
        for name, table in tables(folder).items():
            print(f"\n{name}\n{table}")
    else:
        for document in DOCUMENTS:
            document.write_text(filled_in(document.read_text(), folder))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
