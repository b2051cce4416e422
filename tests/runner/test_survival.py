"""What a run meets: signals, full and read-only disks, a second process, and numbers that are not finite."""

from __future__ import annotations

import errno
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import pytest
from tensorboardX import record_writer

import haepo_jax
from haepo_jax.runner import checkpoints, loggers, run_dir
from haepo_jax.runner.checkpoints import Checkpoints
from haepo_jax.runner.config import RunConfig
from haepo_jax.runner.config.arguments import peek, read_arguments
from haepo_jax.runner.program import EvaluationSize, Program, build
from haepo_jax.runner.resume import resume_command
from haepo_jax.runner.run_dir import LOCK, RunDir
from tests.runner.surviving import (
    ALGORITHMS,
    ALWAYS,
    COMMON,
    Runs,
    StopAfter,
    assert_same_end,
    final_bits,
    rows,
)
from tests.toy_envs import Drift

COUNTING = ["env=CartPole-v1", "total_steps=400", "final_eval_episodes=2", "num_seeds=2", ALWAYS]


# --- Signals ----------------------------------------------------------------------------------------------------------

WAITING = """
import os, sys, time
from haepo_jax.runner.signals import StopSignals
with StopSignals(lambda: os.write(1, b"cleaned up\\n")) as stop:
    if sys.argv[1] == "begun":
        stop.begin()
    print("ready", flush=True)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        sum(range(100_000))
        if stop() and sys.argv[2] == "obey":
            print("asked to stop by", stop(), flush=True)
            break
"""


def waiting(*arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(haepo_jax.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks(signum: int) -> None:
    process = waiting("begun", "obey")
    process.send_signal(signum)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0 and out == f"asked to stop by {signum}\n"
    assert "saving a checkpoint and stopping" in err and err.count("\n") == 1


def test_a_sigterm_that_follows_at_once_is_the_same() -> None:
    """`timeout` sends one to the process and one to its group."""
    process = waiting("begun", "ignore")
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None and "once more to quit immediately" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 143
    process.communicate()


def test_a_second_ctrl_c_ends_at_once() -> None:
    process = waiting("begun", "ignore")
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None and "once more to quit immediately" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    process.communicate()


def test_a_signal_before_training_ends_at_once() -> None:
    process = waiting("early", "ignore")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 143 and out == "cleaned up\n" and "nothing to save" in err


# --- Whole processes --------------------------------------------------------------------------------------------------

LONG = [
    "algo=ppo", "env=CartPole-v1", "num_seeds=2", "total_steps=30000", "algo.num_envs=4", "algo.num_steps=8",
    "algo.num_epochs=1", "algo.num_minibatches=1", "algo.normalize_observations=true", "algo.log_points=900",
    "algo.eval_episodes=1", "final_eval_episodes=2", "algo.hidden_sizes=[8]", ALWAYS,
]  # fmt: skip
"""A run that writes checkpoints all the time."""


def start(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {
        "PYTHONPATH": str(Path(haepo_jax.__file__).parents[1]),
        "JAX_COMPILATION_CACHE_DIR": str(directory.parent / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "haepo_jax.train", f"run_dir={directory}", *arguments],
        env=environment, cwd=directory.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_rows(process: subprocess.Popen[str], directory: Path, count: int) -> bool:
    """Until that many more rows are logged; False where the process has ended before."""
    file = directory / "metrics.jsonl"
    assert process.stdout is not None
    # After this line the metrics have been cut to the rows of the checkpoint.
    while process.poll() is None:
        ready, _, _ = select.select([process.stdout], [], [], 0.1)
        if ready and process.stdout.readline().startswith("compiled"):
            break
    base = file.stat().st_size if process.poll() is None else 0
    while process.poll() is None:
        if file.stat().st_size >= base + 700 * count:
            return True
        time.sleep(0.002)
    return False


def kill_and_resume(tmp_path: Path, kills: int, seed: int, steps: int) -> int:
    """SIGKILL at random moments, then `resume`; ends with the bits of a run that was left alone. Returns how many kills came
    while a checkpoint was being written."""
    generator = random.Random(seed)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    long = [*LONG, f"total_steps={steps}", f"algo.log_points={steps // 33}"]
    process = start(whole, *long)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    done, partial = 0, 0
    before: set[tuple[str, int]] = set()
    while done < kills:
        process = start(broken, *long, "resume=auto")
        if generator.random() < 0.1:
            time.sleep(generator.uniform(0, 5))
        elif wait_for_rows(process, broken, generator.randrange(14)):
            time.sleep(generator.uniform(0, 0.2))
        assert process.poll() is None, "the run must not end before the last kill"
        process.kill()
        _, err = process.communicate(timeout=60)
        assert err == "", "a run that was killed is resumed without a warning"
        done += 1
        left = {(path.name, path.stat().st_mtime_ns) for path in (broken / "checkpoints").glob("*.partial")}
        partial, before = partial + bool(left - before), left
    process = start(broken, *long, "resume=auto")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0 and err == ""
    assert_same_end(broken, whole)
    assert not any((broken / "checkpoints").glob("*.partial"))
    return partial


def test_killed_once(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, 1, seed=1, steps=8000)


@pytest.mark.slow
def test_killed_at_twenty_random_moments(tmp_path: Path) -> None:
    assert kill_and_resume(tmp_path, 20, seed=0, steps=30_000), "no kill came while a checkpoint was being written"


def test_signals_and_locks_between_processes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    long = [*LONG, "total_steps=1e9", "checkpoint_minutes=null"]
    for signum, arguments in ((signal.SIGTERM, long), (signal.SIGINT, ["resume=true"])):
        process = start(run, *arguments)
        assert wait_for_rows(process, run, 0)
        if signum == signal.SIGTERM:
            second = start(run, "resume=true")
            _, err = second.communicate(timeout=120)
            assert second.returncode == 2 and "is in use by another process" in err and err.count("\n") == 1
        begin = time.monotonic()
        process.send_signal(signum)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 128 + signum
        assert time.monotonic() - begin < 20, "about a second on an idle machine"
        assert err.splitlines()[-1].endswith(f"to resume: python -m haepo_jax.train run_dir={run} resume=true")
        assert "Traceback" not in err and len(err.splitlines()) == 2
        Checkpoints(run / "checkpoints").all()[-1].verify()


# --- Disks ------------------------------------------------------------------------------------------------------------


def test_a_second_process_is_refused(counting: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert counting(run, *COUNTING, calls=20) == 143
    with RunDir(run).lock():
        for resume in ("true", "auto"):
            capsys.readouterr()
            assert counting(run, f"resume={resume}") == 2
            assert capsys.readouterr().err == f"error: run_dir='{run}' is in use by another process\n"
    assert counting(run, "resume=true") == 0
    new = tmp_path / "new"
    new.mkdir()
    with RunDir(new).lock():
        for arguments in (COUNTING, ["resume=true"]):
            capsys.readouterr()
            assert counting(new, *arguments) == 2
            assert capsys.readouterr().err == f"error: run_dir='{new}' is in use by another process\n"
            assert (new / LOCK).exists(), "it is the other process's"
    assert counting(new, *COUNTING) == 0


def test_a_directory_that_vanishes(
    counting: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(StopAfter, "__call__", lambda self: shutil.rmtree(run, ignore_errors=True))
    assert counting(run, *COUNTING) == 1
    assert capsys.readouterr().err == f"error: run_dir='{run}' was removed during the run\n"
    assert not run.exists()


def no_room(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "file",
    [
        "metrics.jsonl",
        "checkpoints",
        *(pytest.param(f, marks=pytest.mark.slow) for f in ("config.yaml", "events", "summary.json")),
    ],
)
def test_a_disk_that_fills_is_one_line(
    counting: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert counting(whole, *COUNTING) == 0
    atomically = run_dir.write_atomically
    with monkeypatch.context() as patch:
        if file == "events":
            flush = record_writer.RecordWriter.flush
            patch.setattr(
                record_writer.RecordWriter, "flush", lambda self: no_room() if len(rows(run)) >= 4 else flush(self)
            )
        elif file == "metrics.jsonl":
            append, write = run_dir.append_record, os.write

            def append_until_full(path: Path, record: str) -> None:
                calls: list[int] = []

                def half(descriptor: int, data: bytes) -> int:
                    """Half a record fits, the rest does not."""
                    if calls:
                        no_room()
                    calls.append(1)
                    return write(descriptor, data[: len(data) // 2])

                with monkeypatch.context() as inner:
                    if len(rows(run)) >= 4:
                        inner.setattr(run_dir.os, "write", half)
                    append(path, record)

            patch.setattr(loggers, "append_record", append_until_full)
        elif file == "checkpoints":
            write = checkpoints._write_arrays
            patch.setattr(
                checkpoints,
                "_write_arrays",
                lambda path, arrays: no_room() if int(path.parent.name[:6]) >= 15 else write(path, arrays),
            )
        else:
            for module in (loggers, run_dir):
                patch.setattr(
                    module,
                    "write_atomically",
                    lambda path, content: no_room() if path.name == file else atomically(path, content),
                )
        capsys.readouterr()
        assert counting(run, *COUNTING) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "No space left on device" in error and error.count("\n") == 1, error
    leftovers = [path for path in run.rglob(".*") if path.name != ".lock"] if run.exists() else []
    assert leftovers == []
    if file == "config.yaml":
        assert not run.exists()
        return
    found = Checkpoints(run / "checkpoints").all()
    for checkpoint in found:
        checkpoint.verify()
    assert found and str(found[-1].path) in error and "resume=true" in error
    assert (run / "metrics.jsonl").read_bytes().endswith(b"\n")
    assert counting(run, "resume=true") == 0
    assert_same_end(run, whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=200k tmpfs {disk} 2>/dev/null"):
        pytest.skip("no permission to mount a small file system")
    yield disk
    os.system(f"umount {disk}")


def test_a_small_disk_that_fills_up(
    counting: Runs, tmp_path: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, run = tmp_path / "whole", small_disk / "run"
    arguments = [*COUNTING, "keep_checkpoints=100", ALWAYS]
    assert counting(whole, *arguments) == 0
    capsys.readouterr()
    assert counting(run, *arguments) == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error and error.count("\n") == 1, error
    for checkpoint in Checkpoints(run / "checkpoints").all():
        checkpoint.verify()
    assert [path.name for path in run.rglob(".*")] == [".lock"]
    assert counting(run, "resume=true") == 1, "it is still full"
    assert os.system(f"mount -o remount,size=20m {small_disk}") == 0
    assert counting(run, "resume=true") == 0
    assert rows(run) == rows(whole) and final_bits(run) == final_bits(whole)


def test_a_read_only_directory(counting: Runs, small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = small_disk / "run"
    os.system(f"mount -o remount,size=20m {small_disk}")
    assert counting(run, *COUNTING, calls=20) == 143
    os.system(f"mount -o remount,ro {small_disk}")
    for arguments in (["resume=true"], ["resume=auto"], [*COUNTING, f"run_dir={small_disk}/new"]):
        capsys.readouterr()
        assert counting(run, *arguments) == 2
        error = capsys.readouterr().err
        assert "cannot be written: Read-only file system" in error or "is not writable" in error
        assert error.count("\n") == 1
    os.system(f"mount -o remount,rw {small_disk}")
    assert counting(run, "resume=true") == 0


# --- Numbers that are not finite --------------------------------------------------------------------------------------

SMALL = [
    "algo.num_envs=8", "algo.num_steps=8", "algo.replay_batches=2", "algo.group_size=4", "algo.num_minibatches=2",
    "algo.num_epochs=2", "total_steps=600", *COMMON,
]  # fmt: skip


def test_divergence_is_one_line_and_keeps_the_last_finite_state(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert runs(run, "env=haepo/bandit", *SMALL, "algo.learning_rate=1e38") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: diverged in update ") and error.count("\n") == 1
    assert "algo.learning_rate" in error and "algo.on_nan=skip" in error
    newest = Checkpoints(run / "checkpoints").all()[-1]
    assert str(newest.path) in error
    newest.verify()
    program = Program(build(RunDir(run).read_config()), seeds=[0], final=EvaluationSize(4))
    state = newest.restore(program._state)
    assert all((abs(x) < 1e30).all() for x in jax.tree.leaves(state.params))
    assert RunDir(run).read_summary()["diverged"][0]["seed"] == 0
    assert runs(run, "resume=true") == 1, "it has ended, but not well"
    assert capsys.readouterr().err == error


def test_skipped_updates_are_counted(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert runs(run, "env=haepo/bandit", *SMALL, "algo.learning_rate=1e38", "algo.on_nan=skip") == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("warning: an update is not finite (") and captured.err.count("\n") == 1
    summary = RunDir(run).read_summary()
    assert summary["skipped_updates_per_seed"][0] > 0 and summary["diverged"] == []
    assert rows(run)[-1]["skipped_updates"] == summary["skipped_updates_per_seed"][0]


@pytest.mark.parametrize("broken", ["reward", "observation"])
def test_a_sick_environment_is_named(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr("haepo_jax.envs.make_env", lambda *_, **__: Drift(broken=broken))
    runs(run, "env=haepo/bandit", *SMALL)
    captured = capsys.readouterr()
    assert "warning: haepo/bandit gave an observation or reward that is not finite" in captured.err
    assert RunDir(run).read_summary()["invalid_episodes_per_seed"][0] > 0


def test_the_resume_command_survives_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counting: Runs) -> None:
    import shlex

    for name in ("run", "my run", "a,b", "it's", "a=b", "[x]", "ü", "100%", "null", "1e3", "a:b"):
        command = resume_command(RunDir(tmp_path / name))
        arguments = shlex.split(command)[3:]
        read = read_arguments(arguments).overrides
        assert peek(read, RunConfig, "run_dir") == str(tmp_path / name), name


@pytest.mark.slow
def test_every_algorithm_survives_a_kill(tmp_path: Path) -> None:
    for algo, arguments in ALGORITHMS.items():
        folder = tmp_path / algo
        folder.mkdir()
        arguments = [*arguments, *COMMON, ALWAYS]
        process = start(folder / "whole", *arguments)
        process.communicate(timeout=300)
        process = start(folder / "broken", *arguments)
        wait_for_rows(process, folder / "broken", 1)
        process.kill()
        process.communicate(timeout=60)
        process = start(folder / "broken", "resume=true")
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert_same_end(folder / "broken", folder / "whole")


@pytest.mark.slow
def test_a_small_disk_that_fills_up_in_a_process_of_its_own(tmp_path: Path, small_disk: Path) -> None:
    (small_disk / "cache").symlink_to(tmp_path)
    process = start(small_disk / "run", *LONG, "keep_checkpoints=1000")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 1 and err.startswith("error: ") and err.count("\n") == 1
    assert "No space left on device" in err
