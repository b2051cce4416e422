"""The report says what the stored results say, and a stored result is what its command makes."""

from __future__ import annotations

import importlib
import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haepo_jax as hx
from haepo_jax.algorithms.running import EVALUATION_SEED
from haepo_jax.rollout import collect_episodes, environment_keys

ROOT = Path(__file__).parents[2]
CLAIMS = ROOT / "experiments" / "claims"


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The scripts as modules: `claims("report")`."""
    monkeypatch.syspath_prepend(str(CLAIMS))
    for name in ("catalogue", "run", "report"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module


def test_the_small_suite_prints_the_tables_that_it_has(
    claims: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report, folder = claims("report"), tmp_path / "results" / "small" / "methods"
    folder.mkdir(parents=True)
    for method in claims("run").SIZES["small"].methods:
        file = CLAIMS / "results" / "methods" / f"cartpole.{method}.json"
        (folder / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(report, "HERE", tmp_path)
    monkeypatch.setattr(report, "draw", lambda *_: [])
    assert report.main(["small"]) == 0
    printed = capsys.readouterr().out
    assert "\nthresholds\n| task (threshold) | haepo_default |" in printed and "cartpole (475)" in printed


@pytest.mark.parametrize("document", ["README.md", "experiments/claims/README.md"])
def test_every_table_is_made_of_the_stored_results(claims: Any, document: str) -> None:
    text = (ROOT / document).read_text()
    assert "<!-- table:" in text
    assert claims("report").filled_in(text, CLAIMS / "results") == text


def test_a_number_that_was_written_by_hand_is_noticed(claims: Any) -> None:
    text = (CLAIMS / "README.md").read_text()
    start = text.index("<!-- table: thresholds -->")
    digit = next(i for i in range(start + 400, len(text)) if text[i].isdigit())
    forged = text[:digit] + str((int(text[digit]) + 1) % 10) + text[digit + 1 :]
    assert claims("report").filled_in(forged, CLAIMS / "results") == text


@pytest.mark.parametrize("name", ["bandit", "bandit_100"])
@pytest.mark.parametrize("rank", [0, -1], ids=["worst", "best"])
def test_the_noise_of_a_bandits_evaluation_does_not_depend_on_the_arm(claims: Any, name: str, rank: int) -> None:
    catalogue, report = claims("catalogue"), claims("report")
    task = catalogue.TASKS[name]
    env = hx.make_env(task.env, **task.env_kwargs)
    arm = jnp.argsort(env.params.means)[rank].astype(jnp.int32)
    keys = [environment_keys(key, catalogue.EVAL_EPISODES) for key in jax.random.split(jax.random.key(EVALUATION_SEED))]
    _, returns, lengths = collect_episodes(env, lambda carry, *_: (carry, arm, None), (), *keys, record=False)
    mean = float(lengths[0]) * float(env.params.means[arm])
    (row,) = report.without_noise(name, [[float(returns.mean()), None]])
    assert row == [pytest.approx(mean, abs=2e-3), None] and abs(task.noise) > 0.5


def test_a_probability_is_bold_where_the_corrected_test_finds_a_difference(claims: Any) -> None:
    """Of five against five seeds no order is rarer than 2 in 252, or p = 0.0079, which six pairs times that still pass, and seven
    do not."""
    report = claims("report")

    def result(first: int) -> dict[str, Any]:
        return {"task": {"floor": 0.0}, "env_steps": [[1]] * 5, "eval_return": [[float(first + i)] for i in range(5)]}

    ahead, behind, within = (result(10), result(0)), (result(0), result(10)), (result(0), result(1))
    assert report._probabilities([ahead, within, behind]) == ["**1.00**", "0.32", "**0.00**"]
    assert report._probabilities([ahead] + [within] * 5) == ["**1.00**"] + ["0.32"] * 5
    assert report._probabilities([ahead] + [within] * 6) == ["1.00"] + ["0.32"] * 6


def test_seconds_to_the_threshold(claims: Any) -> None:
    """An update's time and steps are those of the stored settings; a seed that never arrives has no time."""
    report, seconds = claims("report"), claims("seconds")
    replay = {"num_envs": 4, "num_steps": 8, "num_minibatches": 4, "replay_batches": 2}
    settings = {"haepo_default": ("haepo", {}), "ppo": ("ppo", replay), "haepo": ("haepo", {"num_minibatches": 4})}
    found = seconds.measure("bandit", settings, rounds=2)
    assert {name: update["steps"] for name, update in found.items()} == {"haepo_default": 256, "ppo": 32, "haepo": 256}
    assert all(update["seconds"] > 0 for update in found.values())
    curves = {"haepo_default": [19.5, 19.5], "haepo": [0.0, 19.5], "ppo": [0.0, 0.0]}
    task = {"threshold": 19.2}
    results = [
        {
            "file": f"bandit.{name}.json",
            "method": name,
            "task": task,
            "env_steps": [[512, 1024]] * 3,
            "eval_return": [curve] * 3,
        }
        for name, curve in curves.items()
    ]
    updates = {name: {"seconds": 0.5, "steps": 256} for name in curves}
    row = report.seconds_table(results, [{"file": "bandit.json", "updates": updates}]).splitlines()[-1]
    assert row == (
        "| bandit | 1.00 (1.00 to 1.00), 500.0 ms | 2.00 (2.00 to 2.00), 500.0 ms | never (never to never), 500.0 ms "
        "| earlier | earlier |"
    )


def test_steps_to_the_threshold(claims: Any) -> None:
    report = claims("report")
    result = {
        "task": {"threshold": 10.0},
        "eval_return": [[0, 12, 4, 9, 11, 12], [0, 30, 0, 0, 0, None], [0, 0, 0, 0, 0, 10]],
        "env_steps": [[1, 2, 3, 4, 5, 6]] * 3,
    }
    # One lucky evaluation is not enough unless it lifts the mean of two; the last one stands alone.
    assert report.steps_to_threshold(result).tolist() == [4, 1, 6]
    # A row that a large batch repeats is one evaluation: its lucky one does not confirm itself.
    repeated = result | {"eval_return": [[12, 12, 12, 0, 0, 11]], "env_steps": [[3, 3, 3, 4, 5, 6]]}
    assert report.steps_to_threshold(repeated).tolist() == [6]
    median, low, high = report.median_interval(np.array([1.0, 2.0, 3.0, math.inf, math.inf]))
    assert (median, low, high) == (3, 1, math.inf)


def test_the_mean_of_a_curve_is_over_its_steps(claims: Any) -> None:
    """By hand: trapezoids from the floor, -1 at step 0; rows that a large batch repeats, and those without an ended episode."""
    report = claims("report")
    result = {
        "task": {"floor": -1.0, "top": 3.0}, "env_steps": [[2, 4, 4, 8], [4, 4, 4, 8]],
        "eval_return": [[None, 1, 1, 3], [1, 1, 1, 1]],
    }  # fmt: skip
    np.testing.assert_allclose(report.areas(result), [(-2 + 0 + 8) / 8, (0 + 4) / 8])
    np.testing.assert_allclose(report.mean_scores(result), [(0.75 + 1) / 4, (0.5 + 1) / 4])
    del result["task"]  # no floor is known: from the first evaluation that there is
    np.testing.assert_allclose(report.areas(result), [8 / 4, 1])


def test_earlier_is_said_by_the_interval_of_the_difference_of_medians(claims: Any) -> None:
    report = claims("report")
    assert report.difference_of_medians(np.full(20, 1.0), np.full(20, 3.0)) == (-2, -2)
    never = np.full(20, math.inf)
    assert report.difference_of_medians(np.full(20, 1.0), never) == (-math.inf, -math.inf)
    assert report.difference_of_medians(never, never) == (0, 0)
    assert report.difference_of_medians(np.array([1.0] * 10 + [math.inf] * 10), np.full(20, 3.0)) == (-2, math.inf)
    # The standard error of a median of n normal values is 1.25 / sqrt(n), so the interval is about 0.5 wide.
    first, second = (np.random.default_rng(seed).normal(mean, 1, 200) for seed, mean in enumerate((10, 12)))
    low, high = report.difference_of_medians(first, second)
    assert low < np.median(first) - np.median(second) < high and 0.3 < high - low < 0.7

    def arrives(*at: int) -> dict[str, Any]:
        rows = [[0.0] * row + [20.0] * (8 - row) for row in at] * (20 // len(at))
        return {"task": {"threshold": 10.0}, "eval_return": rows, "env_steps": [[*range(1, 9)]] * 20}

    assert [report._earlier(arrives(2), arrives(at)) for at in (1, 2, 5)] == [-1, 0, 1]
    assert report._earlier(arrives(2, 6), arrives(4)) == 0, "the interval is from -2 to 2"


def test_a_stored_result_is_what_its_command_makes(claims: Any) -> None:
    """PPO on the bandit, the stored hyperparameters on four of the stored seeds: the same beginning, and the same end
    within what seeds differ by (other machines and other batch sizes round differently)."""
    run, catalogue = claims("run"), claims("catalogue")
    stored = json.loads((CLAIMS / "results" / "methods" / "bandit.ppo.json").read_text())
    task = catalogue.TASKS["bandit"]
    now = json.loads(json.dumps(task.__dict__))
    assert now | stored["task"] == now
    points = catalogue.REPORTED_POINTS
    made = run._train(task, stored["algo"], stored["hyperparameters"], stored["seeds"][:4], log_points=points)
    old, new = np.array(stored["eval_return"]), np.asarray(made["eval_return"])
    np.testing.assert_array_equal(np.array(stored["env_steps"])[:4], made["env_steps"])
    np.testing.assert_allclose(new[:, 0], old[:4, 0], rtol=0.05)
    assert old[:, -1].min() - 1 <= new[:, -1].mean() <= old[:, -1].max() + 1
    assert new[:, -1].mean() >= stored["task"]["threshold"] - 1


def test_of_three_finalists_and_the_default_the_best_on_other_seeds_is_taken(
    claims: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, catalogue = claims("run"), claims("catalogue")
    asked = []

    def made_up(
        task: Any, algo: str, settings: dict[str, Any], seeds: range, log_points: int = catalogue.CURVE_POINTS
    ) -> dict[str, Any]:
        asked.append((settings.get("clip_eps"), seeds, log_points))
        return {"eval_return": np.full((2, 3), {0.1: 5.0, 0.2: 7.0, 0.3: 6.0, None: 4.0}[settings.get("clip_eps")])}

    monkeypatch.setattr(run, "_train", made_up)
    configs = [{"algo.clip_eps": eps, "env_kwargs.length": 9} for eps in (0.1, 0.2, 0.3, 0.4)]
    swept = {"configs": configs, "area": [9.0, 7.0, 8.0, 1.0]}
    found = run.trained(run.SIZES["full"], catalogue.TASKS["bandit"], "ppo", {"num_envs": 8}, swept, {})
    assert found["hyperparameters"] == {"num_envs": 8, "clip_eps": 0.2}
    assert found["sweep"]["area_again"] == {"0": 5.0, "2": 6.0, "1": 7.0, "default": 4.0}
    others = [(eps, catalogue.CHOICE_SEEDS, 40) for eps in (0.1, 0.3, 0.2, None)]
    assert asked == [*others, (0.2, catalogue.REPORT_SEEDS, 80)]

    # What the catalogue names takes part, too, in the place of the default or beside it.
    swept, earlier = {"configs": configs[:1], "area": [9.0]}, {"earlier search": {"clip_eps": 0.3}}
    found = run.trained(run.SIZES["full"], catalogue.TASKS["bandit"], "ppo_replay_tuned", {}, swept, earlier)
    assert found["sweep"]["area_again"] == {"0": 5.0, "HAEPO's settings": 7.0, "earlier search": 6.0}
    assert found["hyperparameters"] == catalogue.HAEPOS_REPLAY
    every = catalogue.TUNING_SEEDS, catalogue.CHOICE_SEEDS, catalogue.REPORT_SEEDS
    assert len(set().union(*every)) == sum(map(len, every))


def test_a_widened_search_keeps_the_finalists_that_it_had(claims: Any) -> None:
    best = claims("run").best_configurations
    area = [*range(32), *range(100, 116), *range(50, 66)]
    assert best(area) == [31, 30, 29, 47, 46, 45] and best(area[:48]) == best(area)
    assert best(area[:32]) == [31, 30, 29] and best([1.0, 3.0, 2.0, 0.0]) == [1, 2, 0]


def test_a_search_is_widened_with_the_numbers_of_each_space(claims: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, catalogue = claims("run"), claims("catalogue")

    def made_up(env: str, algo: str, space: dict[str, str], *, num_configs: int, **_: Any) -> Any:
        drawn = [{"algo.clip_eps": number / 100} for number in range(num_configs)]
        shape = np.zeros((num_configs, 2, 4))
        return types.SimpleNamespace(configs=drawn, curves=shape + 5, returns=shape[..., 0])

    monkeypatch.setattr(run.hx, "sweep", made_up)
    found = run.search(run.SIZES["full"], catalogue.TASKS["bandit"], catalogue.METHODS["ppo"])
    assert len(found["configs"]) == len(found["area"]) == len(found["returns"]) == 32 + 2 * 16
    assert set(found["area"]) == {5.0} and found["widened"] == list(catalogue.METHODS["ppo"].widened)
    assert "algo.num_epochs" not in found["configs"][31]  # drawn in the first search
    for first in (32, 48):
        begin, end = found["configs"][first], found["configs"][first + 15]
        assert begin["algo.num_epochs"] == 16 and end["algo.clip_eps"] == 0.15
    small = run.search(run.SIZES["small"], catalogue.TASKS["bandit"], catalogue.METHODS["ppo"])
    assert len(small["configs"]) == run.SIZES["small"].num_configs


@pytest.mark.slow
def test_what_is_seen_of_a_deep_sea(claims: Any) -> None:
    """Nearly uniform policies see all of a sea of depth 4: the cells on and below the diagonal, no more."""
    run, catalogue = claims("run"), claims("catalogue")
    assert run.covered([[[1, 0, 0], [1, 0, 0], [0, 0, 1]]]).tolist() == [[1, 1, 2]]
    task = catalogue.Task("DeepSea-bsuite", 128, 0.9, 0, 0.99, {"size": 4})
    made = run._train(task, "ppo", {"num_envs": 8, "num_steps": 16, "learning_rate": 0.0}, range(2), run.coverage)
    assert made["covered"].shape == (2, catalogue.CURVE_POINTS)
    np.testing.assert_array_equal(made["covered"], 1)


@pytest.mark.slow
def test_an_update_of_a_bandit_favours_the_better_episodes(claims: Any) -> None:
    """Fresh episodes are ranked by what an update added to them."""
    run, catalogue = claims("run"), claims("catalogue")
    task = catalogue.Task("haepo/bandit", 2_000, 19.2, 0, 20.25)
    settings = {"num_envs": 32, "num_steps": 10, "num_minibatches": 1, "learning_rate": 3e-3}
    made = run._train(task, "ppo", settings, range(2), run.alignment, log_points=4)
    assert made["alignment_update"].shape == (2, 4)
    assert np.nanmean(made["alignment_update"][:, :2]) > 0.3


def test_arguments_that_cannot_be_used_are_one_line(claims: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = claims("run")
    for arguments in (["medium"], ["small", "tasks=cartpol"], ["small", "colour=red"], []):
        assert run.main(arguments) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ") and message.count("\n") == 1


def test_probes_without_what_is_tuned_are_one_line(claims: Any, tmp_path: Path) -> None:
    run = claims("run")
    size = run.dataclasses.replace(run.SIZES["small"], folder=tmp_path)
    with pytest.raises(SystemExit, match=r"^error: bandit.ppo.json is missing"):
        run.probe(size, "bandit", "ppo")
