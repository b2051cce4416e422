"""The devices and package versions that a run computes with, and what to say where a device gives up."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from importlib import metadata, util

import jax

from haepo_jax.messages import one_line
from haepo_jax.runner.config import ConfigError
from haepo_jax.runner.errors import DeviceError

ACCELERATOR_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm60_plugin", "jax_rocm7_plugin", "libtpu")
ACCELERATOR_NODES = ("/dev/nvidia0", "/dev/kfd", "/dev/accel0")

PACKAGES = (
    "jax",
    "jaxlib",
    "haepo_jax",
    "flax",
    "optax",
    "gymnax",
    "brax",
    "playground",
    "jumanji",
    "craftax",
    "pgx",
    "xminigrid",
)


def describe_device(*, local: bool = False) -> tuple[str, str | None]:
    """The devices jax computes on, of all hosts or of this one, such as `cpu` or `8 x gpu (NVIDIA H200)`; and, where jax
    has fallen back to the CPU although there is an accelerator, a sentence that says so. Raises ConfigError where jax
    finds no device."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            devices = jax.local_devices() if local else jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where JAX_PLATFORMS names what jax has no plugin for
        asked = os.environ.get("JAX_PLATFORMS")
        wish = f"JAX_PLATFORMS={one_line(asked, 40)}: " if asked else ""
        reason = one_line(str(error), 200) or "this platform is missing here, or jax is installed without its plugin"
        raise ConfigError(f"{wish}jax finds no device to run on: {reason}") from None
    platform, kind = devices[0].platform, devices[0].device_kind
    text = platform if kind == platform else f"{platform} ({kind})"
    text = f"{len(devices)} x {text}" if len(devices) > 1 else text
    return text, _fallback() if platform == "cpu" and not os.environ.get("JAX_PLATFORMS") else None


def _fallback() -> str | None:
    if any(util.find_spec(plugin) for plugin in ACCELERATOR_PLUGINS):
        return "jax has an accelerator plugin but could not use it, and fell back to the CPU"
    if any(os.path.exists(node) for node in ACCELERATOR_NODES):
        return "this machine has an accelerator but jax is installed without its plugin, and fell back to the CPU"
    return None


@contextlib.contextmanager
def device_errors(advice: str) -> Iterator[None]:
    """A device that is out of memory ends a run in one line, with advice; raises DeviceError."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        detail = one_line(str(error), 160)
        raise DeviceError(f"the device is out of memory: {advice} ({detail})") from None


def versions() -> dict[str, str | None]:
    """Of this library and of those that a run may rest on; None where one is not installed."""
    return {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "source" if package == "haepo_jax" else None
