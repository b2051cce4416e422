"""Checkpoints on the disk: whole or not there, checked before they are read, and plain arrays."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haepo_jax.runner import checkpoints
from haepo_jax.runner.checkpoints import Checkpoint, CheckpointError, Checkpoints, Saver, from_arrays, to_arrays
from tests.runner.surviving import flip


class State(NamedTuple):
    params: dict[str, Any]
    key: jax.Array
    keys: jax.Array
    rest: tuple[jax.Array, ...]


def make_state() -> State:
    return State(
        params={"layer": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.full(3, jnp.nan)}},
        key=jax.random.key(3),
        keys=jax.random.split(jax.random.key(4, impl="rbg"), 2),
        rest=(jnp.uint32(2**32 - 1), jnp.bool_(True), jnp.ones(2, jnp.bfloat16), jnp.zeros((0, 3)), jnp.int8(-1)),
    )


def same(left: Any, right: Any) -> bool:
    left, right = to_arrays(left), to_arrays(right)
    return left.keys() == right.keys() and all(
        (a.dtype, a.shape, a.tobytes()) == (right[name].dtype, right[name].shape, right[name].tobytes())
        for name, a in left.items()
    )


@pytest.fixture
def directory(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """One checkpoint, not to be changed."""
    directory = Checkpoints(tmp_path_factory.mktemp("written") / "checkpoints")
    return directory.write(to_arrays(make_state()), {"return": 1.5, "position": {"rows": 3}})


def test_what_is_written_is_read_back(written: Checkpoint) -> None:
    written.verify()
    like = jax.eval_shape(make_state)
    state = written.restore(like)
    assert same(state, make_state())
    assert jax.random.key_impl(state.keys) == jax.random.key_impl(make_state().keys)
    assert written.progress()["position"] == {"rows": 3} and written.number == 0


def test_copies_share_no_memory_with_the_device() -> None:
    x = jnp.arange(1000.0)
    copied = to_arrays({"x": x})["x"]
    doubled = jax.jit(lambda x: x * 2, donate_argnums=0)(x)
    assert copied.flags.owndata and (copied == np.arange(1000.0)).all() and doubled[1] == 2


def test_a_structure_that_does_not_fit_is_refused_by_name(written: Checkpoint) -> None:
    like = jax.eval_shape(make_state)
    wrong = like._replace(key=jax.ShapeDtypeStruct((5,), like.key.dtype))
    with pytest.raises(
        CheckpointError, match=r"'key' is uint32\[2\], not uint32\[5, 2\]: it was written by other settings"
    ):
        written.restore(wrong)
    with pytest.raises(
        CheckpointError, match=r"its array 'params/.*' has no place in this run: it was written by other"
    ):
        written.restore(like._replace(params={"layer": {"bigger": like.key}}))
    with pytest.raises(CheckpointError, match=r"it has no array 'params/more': it was written by other settings"):
        written.restore(like._replace(params={**like.params, "more": like.key}))
    with pytest.raises(CheckpointError, match="no array 'x'"):
        from_arrays({}, {"x": jax.ShapeDtypeStruct((1,), jnp.float32)})


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def remove(file: Path) -> None:
    file.unlink()


def lengthen(file: Path) -> None:
    with file.open("ab") as stream:
        stream.write(b"\0")


DAMAGE: list[Callable[[Path], None]] = [truncate, empty, remove, flip, lengthen]


@pytest.mark.parametrize("damage", DAMAGE)
def test_any_damage_to_any_file_is_noticed(written: Checkpoint, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    names = [
        path.relative_to(written.path) for path in written.path.rglob("*") if path.is_file() and path.stat().st_size
    ]
    assert len(names) > 3
    for number, name in enumerate(names):
        copy = Checkpoint(tmp_path / str(number) / written.path.name)
        shutil.copytree(written.path, copy.path)
        copy.verify()
        damage(copy.path / name)
        with pytest.raises(CheckpointError) as refusal:
            copy.verify()
        assert str(copy.path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_unverified_damage_ends_in_one_line(written: Checkpoint, tmp_path: Path) -> None:
    copy = Checkpoint(tmp_path / written.path.name)
    shutil.copytree(written.path, copy.path)
    for file in [path for path in copy.path.rglob("*") if path.is_file() and path.name != "progress.json"]:
        empty(file)
    with pytest.raises(CheckpointError, match="cannot be read by Orbax"):
        copy.restore(jax.eval_shape(make_state))
    assert copy.mean_return == 1.5
    for content in (b"", b"{", b"\xff"):
        (copy.path / "progress.json").write_bytes(content)
        assert copy.mean_return == -np.inf


def test_a_broken_newest_one_falls_back_to_the_one_before(
    directory: Checkpoints, capsys: pytest.CaptureFixture[str]
) -> None:
    directory.path.parent.mkdir(exist_ok=True)
    assert directory.newest() is None and directory.best() is None and capsys.readouterr().err == ""
    first, second, third = (directory.write({"x": np.full(3, i)}, {"return": -float(i)}) for i in range(3))
    flip(third.path)
    assert directory.newest() == second
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1 and "000002" in complaint
    flip(first.path)
    flip(second.path)
    with pytest.raises(CheckpointError, match="none of the 3 checkpoints"):
        directory.newest()


def test_the_last_and_the_best_stay(directory: Checkpoints) -> None:
    returns = [1.0, 5.0, 5.0, float("nan"), None, 2.0, 3.0]
    for value in returns:
        directory.write({"x": np.zeros(1)}, {"return": value})
    directory.prune(keep=2)
    assert [one.number for one in directory.all()] == [1, 5, 6]
    best = directory.best()
    assert best is not None and best.number == 1
    flip(best.path)
    best = directory.best()
    assert best is not None and best.number == 6, "a damaged one is not the best"
    directory.prune(keep=1)
    assert directory.all()[-1].number == 6
    assert directory.write({"x": np.zeros(1)}, {}).number == 7


def test_leftovers_of_a_killed_process_are_swept_up(directory: Checkpoints) -> None:
    directory.path.mkdir(parents=True)
    (directory.path / "000003.partial" / "arrays").mkdir(parents=True)
    (directory.path / "notes.txt").write_text("mine")
    assert directory.all() == []
    made = directory.write({"x": np.zeros(1)}, {})
    assert sorted(os.listdir(directory.path)) == [made.path.name, "notes.txt"]


@pytest.mark.parametrize("place", ["rename", "fsync"])
def test_a_full_disk_leaves_no_litter(directory: Checkpoints, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    good = directory.write({"x": np.ones(5)}, {})

    def no_room(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, place, no_room)
        with pytest.raises(OSError):
            directory.write({"x": np.zeros(5)}, {})
    assert os.listdir(directory.path) == [good.path.name]
    good.verify()
    assert (good.restore({"x": np.ones(5)})["x"] == 1).all()


def test_a_full_file_system_is_one_line(tmp_path: Path) -> None:
    if os.system(f"mount -t tmpfs -o size=400k tmpfs {tmp_path} 2>/dev/null"):
        pytest.skip("no permission to mount a small file system")
    try:
        directory, big = Checkpoints(tmp_path / "checkpoints"), {"x": np.random.default_rng(0).random(20_000)}
        directory.write({"x": big["x"][:10]}, {})
        with pytest.raises((CheckpointError, OSError)) as failure:
            for _ in range(5):
                directory.write(big, {})
        assert "No space left on device" in str(failure.value) and "\n" not in str(failure.value)
        kept = directory.all()
        assert kept and not any(name.endswith(".partial") for name in os.listdir(directory.path))
        for checkpoint in kept:
            checkpoint.verify()
    finally:
        os.system(f"umount {tmp_path}")


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(checkpoints.time, "perf_counter", lambda: self.now)


def test_intervals(directory: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    directory.path.parent.mkdir(exist_ok=True)
    clock = Clock(monkeypatch)
    saver = Saver(directory, minutes=2)
    saver.start()
    clock.now = 119
    assert not saver.due()
    clock.now = 120
    assert saver.due()
    saver.save({"x": jnp.zeros(1)}, {"a": 1, "moment": [1]})
    saver.wait()
    clock.now = 239
    assert not saver.due()
    clock.now = 240
    assert saver.due()
    saver.save({"x": jnp.zeros(1)}, {"a": 1, "moment": [1]})
    saver.wait()
    assert len(directory.all()) == 1, "the same moment is not saved twice"
    assert directory.all()[0].progress()["a"] == 1
    never = Saver(directory, minutes=None)
    never.start()
    clock.now = 1e9
    assert not never.due()
    saver.close()
    never.close()


def test_the_best_row_is_kept_whenever_the_interval_comes(directory: Checkpoints) -> None:
    directory.path.parent.mkdir(exist_ok=True)
    saver = Saver(directory, keep=1)
    saver.start()
    for moment, value in enumerate([1.0, 3.0]):
        saver.hold({"x": jnp.full(1, moment)}, {"return": value, "moment": moment})
    saver.save({"x": jnp.full(1, 9)}, {"return": None, "moment": 9})
    saver.wait()
    best, last = directory.all()
    like = {"x": jax.ShapeDtypeStruct((1,), jnp.int32)}
    assert best.restore(like)["x"] == 1 and last.restore(like)["x"] == 9
    assert directory.best() == best
    saver.hold({"x": jnp.full(1, 10)}, {"return": 4.0, "moment": 10})
    saver.save({"x": jnp.full(1, 10)}, {"return": 4.0, "moment": 10})
    saver.wait()
    assert [one.restore(like)["x"][0] for one in directory.all()] == [10], "one checkpoint where the last is the best"
    saver.close()


def test_a_failed_write_is_reported_to_the_loop(directory: Checkpoints) -> None:
    saver = Saver(directory, minutes=1e-9)
    saver.start()
    shutil.rmtree(directory.path.parent)
    saver.save({"x": jnp.zeros(1)}, {"moment": 1})
    with pytest.raises(FileNotFoundError):
        saver.wait()
    saver.save({"x": jnp.zeros(1)}, {"moment": 2})
    saver.close()
    with pytest.raises(FileNotFoundError):
        saver.due()
