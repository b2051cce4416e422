"""Random command lines through the commands' own entry points (see `fuzz_command_lines`)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from haepo_jax.algorithms import declared
from haepo_jax.runner.config import ConfigError, hyperparameter_fields
from haepo_jax.runner.config.values import checked_value
from haepo_jax.runner.entry import entry_point
from tests.runner.commands.fuzz_command_lines import (
    Line,
    Outcome,
    Writer,
    bad_values,
    call,
    complaints,
    fuzz,
    good_values,
    make_places,
    snapshot,
)


def test_a_hundred_and_fifty_lines(tmp_path: Path) -> None:
    report = fuzz(tmp_path, seed=0, count=150)
    assert not report.defects, str(report)
    assert report.statuses[0] > 20 and report.statuses[2] > 75 and report.certain > 75


@pytest.mark.slow
def test_two_thousand_lines_and_fifty_processes(tmp_path: Path) -> None:
    report = fuzz(tmp_path, seed=7, count=2000, processes=50)
    print(report)
    assert not report.defects, str(report)


def test_the_same_lines_for_the_same_seed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    places = make_places(tmp_path / "a", seed=3)
    one, other, third = (Writer(seed, places).lines() for seed in (3, 3, 4))
    first = [next(one) for _ in range(200)]
    assert first == [next(other) for _ in range(200)] != [next(third) for _ in range(200)]
    assert {line.command for line in first} == {"train", "compare", "sweep", "evaluate", "render", "plot"}


def test_values_are_as_good_or_bad_as_they_are_said_to_be() -> None:
    """For every hyperparameter, by the package's own judgment of a value by itself."""
    for name in declared.ALGORITHMS:
        for key, field in hyperparameter_fields(name).items():
            assert not set(good_values(field)) & set(bad_values(field)), key
            for text in good_values(field):
                checked_value(key, field, _parsed(text))
            for text in bad_values(field):
                with pytest.raises(ConfigError):
                    checked_value(key, field, _parsed(text))


def _parsed(text: str) -> object:
    from haepo_jax.runner.config.arguments import read_arguments

    return read_arguments([f"key={text}"]).overrides[0].value()


@entry_point(lambda argv: "")
def _long(argv: list[str]) -> int:
    raise ConfigError("x" * 5000)


@entry_point(lambda argv: "")
def _crash(argv: list[str]) -> int:
    raise ZeroDivisionError


def _hang(argv: list[str]) -> int:
    while True:
        try:
            time.sleep(10)
        except Exception:
            continue


def _two_lines(argv: list[str]) -> int:
    print("error: a\nerror: b", file=sys.stderr)
    return 2


def _chatter(argv: list[str]) -> int:
    print("starting")
    print("error: a", file=sys.stderr)
    return 2


def _escape(argv: list[str]) -> int:
    print("error: \x1b[31m", file=sys.stderr)
    return 2


def _exit(argv: list[str]) -> int:
    raise SystemExit(2)


@pytest.mark.parametrize(
    ("main", "complaint"),
    [
        (_crash, "traceback"),
        (_hang, "hangs"),
        (_exit, "traceback"),
        (_two_lines, "refused, but not in one line"),
        (_chatter, "refused, but wrote to stdout"),
        (_escape, "refused with what cannot be printed"),
        (lambda argv: 1, "exit status 1"),
        (lambda argv: 0, "exit status 0, not 2"),
    ],
)
def test_what_is_wrong_is_seen(main: Callable[[list[str]], int], complaint: str) -> None:
    assert complaints(Line("train", (), 2), call(main, [], seconds=0.5)) == [complaint]


def test_what_is_right_is_left_alone() -> None:
    assert complaints(Line("train", (), None), call(_long, [])) == []
    assert complaints(Line("train", (), 0), Outcome(0, "the settings are usable\n", "")) == []
    assert complaints(Line("train", (), 2), Outcome(2, "", "error: no\n")) == []


def test_traces_are_seen(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    before = snapshot(tmp_path)
    assert snapshot(tmp_path) == before
    (tmp_path / "a").write_text("x")
    assert snapshot(tmp_path) != before
