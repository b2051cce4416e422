"""The package as it is installed elsewhere: what the wheel holds, and what is said of an extra that is not there."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import util
from pathlib import Path

import pytest

import haepo_jax as hx
from haepo_jax.sweep import main

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("missing", ["optuna", "cmaes", "pyarrow"])
def test_a_sweep_without_its_extra(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *rest: None if name == missing else find(name, *rest))
    line = f"{missing} is not installed: pip install 'haepo_jax[sweep]'"
    assert main(["env=CartPole-v1", "algo.learning_rate=1e-3,1e-2"]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1
    with pytest.raises(ValueError, match="is not installed"):
        hx.sweep("CartPole-v1", "haepo", {"learning_rate": [1e-3, 1e-2]})
    assert main(["--help"]) == 0


def test_what_a_command_line_loads_before_it_reads_its_settings() -> None:
    """A mistyped setting is answered without jax, and the function of a sweep is there without Optuna."""
    code = (
        "import sys, haepo_jax as hx, haepo_jax.sweep; hx.sweep; print(*{'jax', 'optuna', 'pyarrow'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    shutil.copytree(ROOT / "haepo_jax", source / "haepo_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools import build_meta; build_meta.build_wheel('..'); build_meta.build_sdist('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, check=True)
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "haepo_jax").rglob("*") if path.is_file()}
    files = {name for name in files if "__pycache__" not in name}
    assert {"haepo_jax/py.typed", "haepo_jax/rendering/viewer.html"} <= files
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    assert {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("haepo_jax/")} == files
    with tarfile.open(sdist) as archive:
        assert {f"{sdist.name.removesuffix('.tar.gz')}/{name}" for name in files} <= set(archive.getnames())
