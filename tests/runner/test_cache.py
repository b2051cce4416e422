"""The persistent compilation cache of the command lines: on by default, silent, and without effect on results."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

from haepo_jax.runner import entry
from tests.jobs import environment
from tests.runner.surviving import assert_same_end

ARGUMENTS = [
    "env=haepo/bandit", "total_steps=64", "algo.num_envs=8", "algo.group_size=4", "algo.num_minibatches=1",
    "algo.num_epochs=1", "algo.hidden_sizes=[2]", "algo.log_points=2", "algo.eval_episodes=0", "final_eval_episodes=1",
    "tensorboard=false",
]  # fmt: skip


def start(
    home: Path, run: Path, *arguments: str, before: tuple[str, ...] = (), **changes: str
) -> subprocess.Popen[str]:
    command = [*before, sys.executable, "-m", "haepo_jax.train", *(arguments or ARGUMENTS), f"run_dir={run}"]
    # matplotlib's fonts stay where they are: it would speak of a new folder.
    variables = environment(XDG_CACHE_HOME=str(home), MPLCONFIGDIR=matplotlib.get_cachedir(), **changes)
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=600)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.slow
def test_cold_warm_damaged_together_and_off_give_the_same_run(tmp_path: Path) -> None:
    home = tmp_path / "cache"
    together = [start(home, tmp_path / name) for name in ("one", "two")]
    for process in together:
        finish(process)
    entries = sorted(home.rglob("*-cache"))
    assert any(path.name.startswith("jit_advance") for path in entries)
    finish(start(home, tmp_path / "warm"))
    assert sorted(home.rglob("*-cache")) == entries, "something is compiled again"
    for path in entries:
        path.write_bytes(path.read_bytes()[:-20])
    finish(start(home, tmp_path / "damaged"))
    finish(start(tmp_path / "none", tmp_path / "off", JAX_ENABLE_COMPILATION_CACHE="false"))
    assert not list((tmp_path / "none").rglob("*-cache"))
    for name in ("two", "warm", "damaged", "off"):
        assert_same_end(tmp_path / name, tmp_path / "one")


@pytest.mark.slow
def test_a_resumed_run_is_the_same_with_a_cold_and_a_warm_cache(tmp_path: Path) -> None:
    for name in ("cold", "warm"):
        finish(start(tmp_path / "cache", tmp_path / name))
        more = ("total_steps=128", "resume=true")
        finish(start(tmp_path / ("empty" if name == "cold" else "cache"), tmp_path / name, *more))
    assert_same_end(tmp_path / "cold", tmp_path / "warm")


@pytest.mark.slow
def test_a_full_disk_is_silent_and_changes_nothing(tmp_path: Path) -> None:
    """A file system of 64 KiB, which one entry fills; it is seen by that process alone."""
    home = tmp_path / "small"
    home.mkdir()
    small = ("unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size=64k none "{home}" && exec "$@"', "sh")
    if shutil.which("unshare") is None or subprocess.run([*small, "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here without rights")
    twice = "import subprocess, sys; sys.exit(any(subprocess.call([*sys.argv[1:-1], sys.argv[-1] + n]) for n in 'ab'))"
    finish(start(home, tmp_path / "full", before=(*small, sys.executable, "-c", twice)))
    finish(start(tmp_path / "none", tmp_path / "off", JAX_ENABLE_COMPILATION_CACHE="false"))
    for name in ("fulla", "fullb"):
        assert_same_end(tmp_path / name, tmp_path / "off")


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.setenv(name, "")  # so that monkeypatch takes back what is set
        monkeypatch.delenv(name)
    return tmp_path / "haepo_jax" / entry._processor()


def test_the_directory_is_the_users_and_may_be_chosen(variables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry.keep_compiled()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(variables)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    entry.keep_compiled()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "elsewhere"


def test_whoever_has_loaded_jax_has_configured_it(variables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", os)
    entry.keep_compiled()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_a_directory_that_cannot_be_made_is_done_without(variables: Path) -> None:
    variables.parent.write_text("a file")
    entry.keep_compiled()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_the_oldest_programs_go(variables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "MAX_CACHE_BYTES", 25)
    variables.mkdir(parents=True)
    for age, name in enumerate(["new-cache", "middle-cache", "old-cache"]):
        (variables / name).write_bytes(bytes(10))
        os.utime(variables / name, (1e9 - age, 1e9 - age))
    (variables / "other").write_bytes(bytes(100))
    entry.keep_compiled()
    assert sorted(path.name for path in variables.iterdir()) == ["middle-cache", "new-cache", "other"]
