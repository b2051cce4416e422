"""The report says what the stored results say, and a stored result is what its command makes."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
CLAIMS = ROOT / "experiments" / "claims"


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The scripts as modules: `claims("report")`."""
    monkeypatch.syspath_prepend(str(CLAIMS))
    for name in ("catalogue", "run", "report"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module


@pytest.mark.parametrize("document", ["README.md", "experiments/README.md"])
def test_every_table_is_made_of_the_stored_results(claims: Any, document: str) -> None:
    text = (ROOT / document).read_text()
    assert "<!-- table:" in text
    assert claims("report").filled_in(text, CLAIMS / "results") == text


def test_a_number_that_was_written_by_hand_is_noticed(claims: Any) -> None:
    text = (ROOT / "experiments" / "README.md").read_text()
    start = text.index("<!-- table: thresholds -->")
    digit = next(i for i in range(start + 400, len(text)) if text[i].isdigit())
    forged = text[:digit] + str((int(text[digit]) + 1) % 10) + text[digit + 1 :]
    assert claims("report").filled_in(forged, CLAIMS / "results") == text


def test_steps_to_the_threshold(claims: Any) -> None:
    report = claims("report")
    result = {
        "task": {"threshold": 10.0},
        "eval_return": [[0, 12, 4, 9, 11, 12], [0, 30, 0, 0, 0, None], [0, 0, 0, 0, 0, 10]],
        "env_steps": [[1, 2, 3, 4, 5, 6]] * 3,
    }
    # One lucky evaluation is not enough unless it lifts the mean of two; the last one stands alone.
    assert report.steps_to_threshold(result).tolist() == [4, 1, 6]
    median, low, high = report.median_interval(np.array([1.0, 2.0, 3.0, math.inf, math.inf]))
    assert (median, low, high) == (3, 1, math.inf)


def test_a_stored_result_is_what_its_command_makes(claims: Any) -> None:
    """PPO on the bandit, the stored hyperparameters on four of the stored seeds: the same beginning, and the same end
    within what seeds differ by (other machines and other numbers of lanes round otherwise)."""
    run, catalogue = claims("run"), claims("catalogue")
    stored = json.loads((CLAIMS / "results" / "methods" / "bandit.ppo.json").read_text())
    task = catalogue.TASKS["bandit"]
    assert stored["task"] == json.loads(json.dumps(task.__dict__))
    made = run._train(task, stored["algo"], stored["hyperparameters"], stored["seeds"][:4])
    old, new = np.array(stored["eval_return"]), np.asarray(made["eval_return"])
    np.testing.assert_array_equal(np.array(stored["env_steps"])[:4], made["env_steps"])
    np.testing.assert_allclose(new[:, 0], old[:4, 0], rtol=0.05)
    assert old[:, -1].min() - 1 <= new[:, -1].mean() <= old[:, -1].max() + 1
    assert new[:, -1].mean() >= stored["task"]["threshold"] - 1


def test_arguments_that_cannot_be_used_are_one_line(claims: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = claims("run")
    for arguments in (["medium"], ["small", "tasks=cartpol"], ["small", "colour=red"], []):
        assert run.main(arguments) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ") and message.count("\n") == 1
