"""The tables in the documents say what the stored results of the smaller experiments say."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haepo_jax as hx
from haepo_jax.runner.commands import train

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.mark.parametrize("name", ["environments", "language", "recurrence", "preferences", "replay"])
def test_a_table_is_made_of_the_stored_results(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    script, tables = importlib.import_module(f"{name}.run"), importlib.import_module("tables")
    text = script.DOCUMENT.read_text()
    table = script.table(json.loads(script.RESULTS.read_text()))
    assert f"<!-- table: {name} -->\n{table}\n\n" in text + "\n"
    assert tables.filled_in(text, name, table) == text
    if name == "replay":
        normalised = script.normalised(json.loads(script.RESULTS.read_text()))
        assert tables.filled_in(text, "normalised", normalised) == text and normalised in text


def settings(algorithm: Any) -> dict[str, Any]:
    """The hyperparameters of an algorithm, but for its environment."""
    return {f.name: getattr(algorithm, f.name) for f in dataclasses.fields(algorithm) if f.name != "env"}


def test_where_only_the_bound_is_compared_nothing_else_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the defaults of HAEPO and PPO are."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS / "claims"))
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    script, catalogue = importlib.import_module("replay.run"), importlib.import_module("claims.catalogue")
    softmax = settings(script.algorithm("cartpole", "softmax"))
    assert not softmax["normalize_observations"] and script.algorithm("pendulum", "clip").normalize_observations
    for bound, (kind, own) in script.BOUNDS.items():
        other = settings(script.algorithm("cartpole", bound))
        differing = {name for name in softmax.keys() & other.keys() if softmax[name] != other[name]}
        kl = {"kl_coef"} if ("kl_coef" in own) == (kind == "HAEPO") else set()  # PPO's default has no penalty
        assert differing == kl | {"advantage_estimator", "normalize_observations"} & own.keys(), bound
        assert other.get("clip_eps", 0.2) == 0.2
    ours, clip = (
        settings(getattr(hx, {"haepo": "HAEPO", "ppo": "PPO"}[algo])("CartPole-v1", **own))
        for algo, own in (catalogue.HELD_OUT_METHODS[name] for name in ("haepo_default", "clip on HAEPO's replay"))
    )
    assert {name for name in ours.keys() & clip.keys() if ours[name] != clip[name]} == {"kl_coef"}


def test_the_tuned_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tables are made of the stored results, no method draws what another does not, and the best was chosen."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    script, tables = importlib.import_module("replay.tuned"), importlib.import_module("tables")
    results = json.loads(script.RESULTS.read_text())
    text = script.DOCUMENT.read_text()
    for name, table in script.tables(results).items():
        assert f"<!-- table: {name} -->\n{table}\n" in text + "\n"
        assert tables.filled_in(text, name, table) == text
    softmax, clip = (script.draws(bound) for bound in ("temperature", "clip_eps"))
    assert softmax.keys() - clip.keys() == {"temperature"} and clip.keys() - softmax.keys() == {"clip_eps"}
    assert all((softmax[name] == clip[name]).all() for name in softmax.keys() & clip.keys())
    for methods in script.METHODS.values():
        for known in methods.values():
            rows = [known.rows(shape) for shape in range(len(known.shapes))]
            assert sum(map(len, rows)) == known.configurations and all(row[:2] == [0, 1] for row in rows)
            assert len({number for row in rows for number in row}) == known.configurations - 2 * (len(rows) - 1)
    names = set()
    for table, methods in script.METHODS.items():
        for task, method in itertools.product(script.ORDER, methods):
            if (found := results["runs"].get(script.name_of(task, table, method))) is None:
                continue
            known = methods[method]
            shape, row, score = script.chosen(results, task, table, method)
            every = [results["tuning"][script.name_of(task, table, method, n)] for n in range(len(known.shapes))]
            assert score == max(score for one in every for score in one["scores"])
            assert found["settings"].items() >= known.shapes[shape].items()
            values = {name: column[row] for name, column in script.draws(known.bound).items()}
            assert {name: found["settings"][name] for name in values} == pytest.approx(values, rel=1e-3)
            file, content = script.settings_file(task, table, method, found)
            names.add(file)
            assert (script.SETTINGS / file).read_text() == content
            assert train.main(["--config", str(script.SETTINGS / file), "--cfg", "job"]) == 0
    assert {path.name for path in script.SETTINGS.iterdir()} == names


def test_regimes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is made of the stored results, the best of equally many configurations was chosen, and late rewards are the same
    rewards."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    script, tables = importlib.import_module("replay.regimes"), importlib.import_module("tables")
    results = json.loads(script.RESULTS.read_text())
    text = script.DOCUMENT.read_text()
    assert tables.filled_in(text, "regimes", script.table(results)) == text and "<!-- table: regimes -->" in text
    assert tables.filled_in(text, "variants", script.variants(results)) == text and "<!-- table: variants -->" in text
    for name, found in results["runs"].items():
        line, method = name.split(", ", 1)
        assert line in script.LINES and len(found["configs"]) == len(found["scores"]) == 8
        best = found["configs"][found["scores"].index(max(found["scores"]))]
        assert best == [found["learning_rate"], found[script.EVERY[method][1]]]
        assert np.shape(found["eval_return"]) == (20, len(found["env_steps"]))
    env = hx.make_env("haepo/random_walk", length=4, horizon=9)
    late = script.LateReward(env)
    (state, _), (owing, _) = env.reset(jax.random.key(0)), late.reset(jax.random.key(0))
    total = 0.0
    for step in range(9):
        key = jax.random.key(step)
        now, then = env.step(key, state, jnp.int32(step % 2)), late.step(key, owing, jnp.int32(step % 2))
        total += float(now.reward)
        if now.terminated | now.truncated:
            break
        assert then.reward == 0
        state, owing = now.state, then.state
    assert then.reward == pytest.approx(total) and (then.terminated, then.truncated) == (now.terminated, now.truncated)


def test_other_libraries_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is made of the stored results, and every run of a method has as many evaluations."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    script, tables = importlib.import_module("baselines.report"), importlib.import_module("tables")
    text = script.DOCUMENT.read_text()
    assert tables.filled_in(text, "baselines", script.table()) == text
    for file, _ in script.OTHERS.values():
        for name, run in json.loads((script.HERE / file).read_text())["runs"].items():
            assert len(run["eval_return"]) == len(run["env_steps"]) <= 100, name
            assert run["env_steps"] == sorted(run["env_steps"]), name


def test_every_task_has_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that have been attempted; `every_task.py` runs all that are installed."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    script, tables = importlib.import_module("environments.every_task"), importlib.import_module("tables")
    done = json.loads(script.RESULTS.read_text())
    assert not {task: result["error"] for task, result in done.items() if result["error"]}
    text = script.DOCUMENT.read_text()
    assert tables.filled_in(text, "every_task", script.table(done)) == text
