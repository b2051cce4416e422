"""Checkpoints on the disk: whole or not there, checked before they are read, and plain arrays."""

from __future__ import annotations

import errno
import json
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


def files(checkpoint: Checkpoint) -> list[Path]:
    return sorted(path for path in checkpoint.path.rglob("*") if path.is_file())


def test_what_is_written_is_read_back(written: Checkpoint) -> None:
    written.verify()
    like = jax.eval_shape(make_state)
    state = written.restore(like)
    assert same(state, make_state())
    assert jax.random.key_impl(state.keys) == jax.random.key_impl(make_state().keys)
    assert written.progress()["position"] == {"rows": 3} and written.number == 0
    assert len(files(written)) >= 8, "the corruption test is about more than a file or two"


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
    with pytest.raises(CheckpointError, match=r"other settings or another version|cannot read its arrays"):
        written.restore(like._replace(params={"layer": {"bigger": like.key}}))
    with pytest.raises(CheckpointError, match="no array 'x'"):
        from_arrays({}, {"x": jax.ShapeDtypeStruct((1,), jnp.float32)})


def test_precision_may_change_where_a_policy_is_loaded() -> None:
    """As from a run with 32-bit types to a process with 64-bit ones. A run that is resumed must find what it left."""
    arrays, like = {"x": np.ones(3, np.float32)}, {"x": jax.ShapeDtypeStruct((3,), np.dtype(np.float64))}
    assert from_arrays(arrays, like, cast=True)["x"].dtype == np.float64
    with pytest.raises(CheckpointError, match=r"float32\[3\], not float64\[3\]"):
        from_arrays(arrays, like)
    with pytest.raises(CheckpointError, match=r"int8"):
        from_arrays({"x": np.ones(3, np.int8)}, like, cast=True)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def remove(file: Path) -> None:
    file.unlink()


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def lengthen(file: Path) -> None:
    with file.open("ab") as stream:
        stream.write(b"\0")


DAMAGE: list[Callable[[Path], None]] = [truncate, empty, remove, flip, lengthen]


@pytest.mark.parametrize("damage", DAMAGE)
def test_any_damage_to_any_file_is_noticed(written: Checkpoint, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    for index, file in enumerate(files(written)):
        copy = Checkpoint(tmp_path / str(index))
        shutil.copytree(written.path, copy.path)
        copy.verify()
        damage(copy.path / file.relative_to(written.path))
        with pytest.raises(CheckpointError) as refusal:
            copy.verify()
        assert str(copy.path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_every_bit_of_the_manifest_counts(written: Checkpoint, tmp_path: Path) -> None:
    copy = Checkpoint(tmp_path / "copy")
    shutil.copytree(written.path, copy.path)
    manifest = copy.path / "manifest.json"
    data = manifest.read_bytes()
    for index in range(0, len(data), 7):
        for bit in range(8):
            changed = bytearray(data)
            changed[index] ^= 1 << bit
            manifest.write_bytes(changed)
            try:
                copy.verify()
            except CheckpointError:
                continue
            # White space may become other white space.
            assert json.loads(changed) == json.loads(data)


def test_manifests_that_make_no_sense_are_refused(written: Checkpoint, tmp_path: Path) -> None:
    copy = Checkpoint(tmp_path / "copy")
    shutil.copytree(written.path, copy.path)
    for text in (
        "",
        "[]",
        "{}",
        '{"files": []}',
        '{"files": {}}',
        '{"files": {"progress.json": 1}}',
        "[" * 100_000,
        "\xff",
    ):
        (copy.path / "manifest.json").write_text(text)
        with pytest.raises(CheckpointError):
            copy.verify()


def test_a_broken_newest_one_falls_back_to_the_one_before(directory: Checkpoints) -> None:
    directory.path.parent.mkdir(exist_ok=True)
    assert directory.newest(lambda _: None, pytest.fail) is None and directory.best() is None
    first, second, third = (directory.write({"x": np.full(3, i)}, {"return": -float(i)}) for i in range(3))
    remove(files(third)[0])
    complaints: list[str] = []
    assert directory.newest(lambda _: None, complaints.append) == second
    assert len(complaints) == 1 and "000002" in complaints[0]

    def reject_second(checkpoint: Checkpoint) -> None:
        if checkpoint == second:
            raise CheckpointError("not this one")

    assert directory.newest(reject_second, complaints.append) == first
    flip(files(first)[0])
    flip(files(second)[0])
    with pytest.raises(CheckpointError, match="none of the 3 checkpoints"):
        directory.newest(lambda _: None, complaints.append)


def test_the_last_and_the_best_stay(directory: Checkpoints) -> None:
    returns = [1.0, 5.0, 5.0, float("nan"), None, 2.0, 3.0]
    for value in returns:
        directory.write({"x": np.zeros(1)}, {"return": value})
    directory.prune(keep=2)
    assert [one.number for one in directory.all()] == [1, 5, 6]
    best = directory.best()
    assert best is not None and best.number == 1
    flip(files(best)[0])
    best = directory.best()
    assert best is not None and best.number == 6, "a damaged one is not the best"
    directory.prune(keep=1)
    assert [one.number for one in directory.all()] == [1, 6]
    assert directory.write({"x": np.zeros(1)}, {}).number == 7


def test_leftovers_of_a_killed_process_are_swept_up(directory: Checkpoints) -> None:
    (directory.path / ".000003.partial" / "arrays").mkdir(parents=True)
    (directory.path / "notes.txt").write_text("mine")
    assert directory.all() == []
    directory.write({"x": np.zeros(1)}, {})
    assert sorted(os.listdir(directory.path)) == ["000000", "notes.txt"]


def fail_at_call(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    calls = [0]

    def replacement(*arguments: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return function(*arguments, **keywords)

    return replacement


@pytest.mark.parametrize("place", ["_save_arrays", "flush_to_disk", "_describe"])
def test_a_full_disk_leaves_no_litter(directory: Checkpoints, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    good = directory.write({"x": np.ones(5)}, {})
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, place, fail_at_call(getattr(checkpoints, place), 1))
        with pytest.raises(OSError):
            directory.write({"x": np.zeros(5)}, {})
    assert os.listdir(directory.path) == [good.path.name]
    good.verify()
    assert (good.restore({"x": jax.ShapeDtypeStruct((5,), jnp.float32)} | {"x": np.ones(5)})["x"] == 1).all()


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
        assert kept and not any(name.startswith(".") for name in os.listdir(directory.path))
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
    saver = Saver(directory, steps=100, minutes=2)
    saver.start(1000)
    assert not saver.due(1099) and saver.due(1100)
    clock.now = 119
    assert not saver.due(1000)
    clock.now = 120
    assert saver.due(1000)
    saver.save({"x": jnp.zeros(1)}, 1000, {"a": 1}, "moment")
    saver.wait()
    assert not saver.due(1099) and saver.due(1100)
    saver.save({"x": jnp.zeros(1)}, 1100, {"a": 1}, "moment")
    saver.wait()
    assert len(directory.all()) == 1, "the same moment is not saved twice"
    assert directory.all()[0].progress()["a"] == 1
    never = Saver(directory, steps=None, minutes=None)
    never.start(0)
    clock.now = 1e9
    assert not never.due(10**12)
    saver.close()
    never.close()


def test_the_best_row_is_kept_whenever_the_interval_comes(directory: Checkpoints) -> None:
    directory.path.parent.mkdir(exist_ok=True)
    saver = Saver(directory, keep=1)
    saver.start(0)
    for moment, value in enumerate([1.0, 3.0]):
        saver.hold({"x": jnp.full(1, moment)}, {"return": value}, moment)
    saver.save({"x": jnp.full(1, 9)}, 10, {"return": None}, 9)
    saver.wait()
    best, last = directory.all()
    like = {"x": jax.ShapeDtypeStruct((1,), jnp.int32)}
    assert best.restore(like)["x"] == 1 and last.restore(like)["x"] == 9
    assert directory.best() == best
    saver.hold({"x": jnp.full(1, 10)}, {"return": 4.0}, 10)
    saver.save({"x": jnp.full(1, 10)}, 10, {"return": 4.0}, 10)
    saver.wait()
    assert [one.restore(like)["x"][0] for one in directory.all()] == [10], "one checkpoint where the last is the best"
    saver.close()


def test_a_failed_write_is_reported_to_the_loop(directory: Checkpoints) -> None:
    saver = Saver(directory, steps=1)
    saver.start(0)
    shutil.rmtree(directory.path.parent)
    saver.save({"x": jnp.zeros(1)}, 1, {}, 1)
    with pytest.raises(FileNotFoundError):
        saver.wait()
    saver.save({"x": jnp.zeros(1)}, 1, {}, 2)
    saver.close()
    with pytest.raises(FileNotFoundError):
        saver.due(1)
