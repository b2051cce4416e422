"""The run's directory: names that never collide, one line for what cannot be used, files replaced whole."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from haepo_jax.runner import run_dir, session
from haepo_jax.runner.config import ConfigError, RunConfig
from haepo_jax.runner.config.arguments import compose, read_arguments
from haepo_jax.runner.run_dir import (
    RunDir,
    check_run_dir,
    config_text,
    create_run_dir,
    json_text,
    rows_of,
    write_atomically,
)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.chdir(tmp_path)
    return compose(read_arguments(["env=brax/ant", "seed=3"]).overrides, RunConfig)


def test_unnamed_directories_never_collide(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "run", lambda *arguments, **keywords: ({}, None))
    paths = {session.run_in_directory(config)[0].path for _ in range(5)}
    assert len(paths) == 5
    assert all(path.parent == Path("runs") and path.name.startswith("brax-ant-haepo-3-") for path in paths)


def test_checking_makes_nothing(config: RunConfig, tmp_path: Path) -> None:
    check_run_dir(None)
    check_run_dir("deep/below/here")
    assert list(tmp_path.iterdir()) == []


def test_directories_that_cannot_be_used(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "at all")
    old = RunDir(tmp_path / "old")
    old.path.mkdir()
    old.metrics.write_text("")
    for name, message in [
        ("file", "is not a directory"),
        ("file/below", "'{}/file' is not a directory"),
        ("old", "already holds a run: choose another"),
        ("dangling", "File exists"),
        ("a\0b", "null"),
        ("x" * 1000, "name too long"),
        ("/proc/nothing", "cannot be written"),
    ]:
        with pytest.raises(ConfigError) as refusal:
            create_run_dir(name)
        assert message.format(tmp_path) in str(refusal.value), name
        assert str(refusal.value).startswith("run_dir=")
    # The tests may run as root, to whom every directory is writable.
    exists = os.path.exists
    monkeypatch.setattr(run_dir.os, "access", lambda path, mode: mode == os.F_OK and exists(path))
    with pytest.raises(ConfigError, match="is not writable"):
        check_run_dir("new")


def test_an_empty_directory_is_taken_back(config: RunConfig, tmp_path: Path) -> None:
    directory = create_run_dir("new")
    directory.remove_if_empty()
    assert not directory.path.exists()
    directory = create_run_dir("new")
    (directory.path / "notes").write_text("mine")
    directory.remove_if_empty()
    assert (directory.path / "notes").exists() and not directory.holds_run()


def test_config_is_read_back(config: RunConfig, tmp_path: Path) -> None:
    directory = RunDir(tmp_path)
    with pytest.raises(ConfigError, match=r"holds no readable config\.yaml"):
        directory.read_config()
    write_atomically(directory.config, config_text(config.to_dict()))
    assert directory.read_config() == config
    for text in ["", "[1, 2]", "a: [", "a: &a {b: *a}", "!!python/object/apply:os.system [ls]", "\x00"]:
        directory.config.write_text(text)
        with pytest.raises(ConfigError) as refusal:
            directory.read_config()
        assert "\n" not in str(refusal.value)
    with pytest.raises(ConfigError, match="is not a directory"):
        RunDir(tmp_path / "nowhere").read_config()


def test_writing_leaves_the_old_file_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "summary.json"
    write_atomically(file, "old")
    write_atomically(file, b"new")
    assert file.read_text() == "new"

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_dir.os, "replace", full_disk)
    with pytest.raises(OSError, match="summary.json.$"):
        write_atomically(file, "newer")
    assert file.read_text() == "new" and [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_a_line_separator_within_a_string_ends_no_row() -> None:
    rows = [{"completion": "a\u2028b\u0085c"}, {"completion": "d"}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    assert rows_of(text + '{"completion": "half') == rows


def test_numbers_that_are_not_finite_are_null() -> None:
    text = json_text({"a": math.nan, "b": [math.inf, 1.5], "c": {"d": -math.inf}, "e": 2**60})
    assert json.loads(text) == {"a": None, "b": [None, 1.5], "c": {"d": None}, "e": 2**60}
