"""The tables in the documents say what the stored results of the smaller experiments say."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

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


def test_the_tuned_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tables are made of the stored results, and no method draws what another does not."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    script, tables = importlib.import_module("replay.tuned"), importlib.import_module("tables")
    results = json.loads(script.RESULTS.read_text())
    text = script.DOCUMENT.read_text()
    for kept, name in ((8, "tuned"), (32, "stale")):
        assert f"<!-- table: {name} -->\n{script.table(results, kept)}\n" in text + "\n"
        assert tables.filled_in(text, name, script.table(results, kept)) == text
    softmax, clip = (script.draws("cartpole", bound) for bound in ("temperature", "clip_eps"))
    assert softmax.keys() - clip.keys() == {"temperature"} and clip.keys() - softmax.keys() == {"clip_eps"}
    for name in softmax.keys() & clip.keys():
        assert (softmax[name] == clip[name]).all() and len(softmax[name]) == script.CONFIGURATIONS
    jobs = {
        script.name_of(task, kept, method): (task, kept, method)
        for kept, methods in script.METHODS_OF.items()
        for task in script.ORDER
        for method in methods
    }
    assert {path.name for path in script.SETTINGS.iterdir()} == {
        script.settings_file(*jobs[name], found)[0] for name, found in results["runs"].items()
    }
    for name, found in results["runs"].items():
        file, content = script.settings_file(*jobs[name], found)
        assert (script.SETTINGS / file).read_text() == content
        assert train.main(["--config", str(script.SETTINGS / file), "--cfg", "job"]) == 0
        _, bound, shapes = script.METHODS_OF[jobs[name][1]][jobs[name][2]]
        best = max(range(script.CONFIGURATIONS), key=found["scores"].__getitem__)
        assert found["settings"].items() >= shapes[best * len(shapes) // script.CONFIGURATIONS].items()
        first = {**script.FIRST, bound: script.OWN[bound][2]}
        assert best % (script.CONFIGURATIONS // len(shapes)) or found["settings"].items() >= first.items()


def test_every_task_has_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that have been attempted; `every_task.py` runs all that are installed."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    script, tables = importlib.import_module("environments.every_task"), importlib.import_module("tables")
    done = json.loads(script.RESULTS.read_text())
    assert not {task: result["error"] for task, result in done.items() if result["error"]}
    text = script.DOCUMENT.read_text()
    assert tables.filled_in(text, "every_task", script.table(done)) == text
