"""Films of pictures with captions: GIF, or MP4 where `imageio-ffmpeg` is installed."""

from __future__ import annotations

import importlib.util
import io
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from haepo_jax.runner.config import ConfigError

CAPTION = 18
"""Height of the caption below each picture, in pixels."""
LAST_FRAME = 1000
"""Milliseconds for which the last picture is shown."""
PALETTE = 64


def check_suffix(suffix: str) -> None:
    """Raises ConfigError where a film of this kind cannot be written."""
    if suffix == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ConfigError("an .mp4 needs imageio-ffmpeg: pip install imageio-ffmpeg, or write a .gif")


def film(frames: Iterable[Image.Image], captions: Iterable[str], milliseconds: float, suffix: str) -> bytes:
    """A film as the bytes of a file.

    Args:
      frames: pictures of one size.
      captions: a line of text for each.
      milliseconds: between two pictures; a GIF counts in hundredths of a second.
      suffix: of the file, ".gif" or ".mp4".
    """
    pictures = [_captioned(frame, text) for frame, text in zip(frames, captions, strict=True)]
    return _mp4(pictures, milliseconds) if suffix == ".mp4" else _gif(pictures, milliseconds)


def _captioned(frame: Image.Image, text: str) -> Image.Image:
    # H.264 needs even sizes.
    width, height = max(frame.width, 160), frame.height + CAPTION
    picture = Image.new("RGB", (width + width % 2, height + height % 2), "white")
    picture.paste(frame, ((picture.width - frame.width) // 2, 0))
    ImageDraw.Draw(picture).text((4, frame.height + 3), text, (60, 60, 70))
    return picture


def _gif(pictures: Sequence[Image.Image], milliseconds: float) -> bytes:
    # One palette for all, from pictures spread over the episode: with a palette each, colours flicker.
    chosen = [np.asarray(pictures[index]) for index in np.linspace(0, len(pictures) - 1, 8).astype(int)]
    palette = Image.fromarray(np.concatenate(chosen)).quantize(PALETTE)
    small = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    durations = [max(20, 10 * round(milliseconds / 10))] * (len(small) - 1) + [LAST_FRAME]
    file = io.BytesIO()
    small[0].save(file, "GIF", save_all=True, append_images=small[1:], duration=durations, loop=0)
    return file.getvalue()


def _mp4(pictures: Sequence[Image.Image], milliseconds: float) -> bytes:
    import imageio_ffmpeg

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # JAX warns of every fork; the child becomes ffmpeg at once.
        warnings.simplefilter("ignore", RuntimeWarning)
        file = Path(folder) / "film.mp4"
        writer = imageio_ffmpeg.write_frames(
            str(file), pictures[0].size, fps=1000 / milliseconds, macro_block_size=2, ffmpeg_log_level="error"
        )
        writer.send(None)
        for picture in [*pictures, *[pictures[-1]] * round(LAST_FRAME / milliseconds)]:
            writer.send(picture.tobytes())
        writer.close()
        return file.read_bytes()
