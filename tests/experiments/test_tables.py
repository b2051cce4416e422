"""The tables in the documents say what the stored results of the smaller experiments say."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.mark.parametrize("name", ["environments", "language", "recurrence", "preferences", "replay"])
def test_a_table_is_made_of_the_stored_results(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    script, tables = importlib.import_module(f"{name}.run"), importlib.import_module("tables")
    text = script.DOCUMENT.read_text()
    table = script.table(json.loads(script.RESULTS.read_text()))
    assert f"<!-- table: {name} -->\n{table}\n\n" in text + "\n"
    assert tables.filled_in(text, name, table) == text


def test_every_task_has_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that have been attempted; `every_task.py` runs all that are installed."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    script, tables = importlib.import_module("environments.every_task"), importlib.import_module("tables")
    done = json.loads(script.RESULTS.read_text())
    assert not {task: result["error"] for task, result in done.items() if result["error"]}
    text = script.DOCUMENT.read_text()
    assert tables.filled_in(text, "every_task", script.table(done)) == text
