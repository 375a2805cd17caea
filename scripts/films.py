"""Frames with captions, side by side, in a file."""

import errno
import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from rheo.errors import RheoError
from rheo.files import atomically

INK, PALE, SOLVED, OVER = (255, 255, 255), (110, 110, 110), (90, 220, 110), (240, 200, 80)
BAR, CELLS = 6, 64  # pixels of a plan's bar; more steps than this are one cell
SAMPLED = 8  # frames of a film that its colours are chosen from
MP4 = "pip install 'rheo-rl[video]'"


@dataclass
class Caption:
    """What is written into a frame."""

    seconds: float = 0.0  # of the episode
    ret: float = 0.0  # the return so far
    q: float | None = None  # what the critic expects of the running plan
    used: int = 0  # steps of the plan that were executed
    steps: int = 1  # of the plan, that will be
    solved: bool = False
    over: bool = False

    def copy(self) -> "Caption":
        """As it is now."""
        return replace(self)

    def lines(self, title: str) -> list[str]:
        """Title, time, return and Q."""
        worth = "" if self.q is None else f"   Q {self.q:.1f}"
        ended = "   solved" if self.solved else "   over" if self.over else ""
        return [title, f"{self.seconds:.2f} s   return {self.ret:.1f}{worth}{ended}"]


def captioned(image: NDArray, title: str, caption: Caption) -> NDArray:
    """A frame with its caption above, and below how much of the running plan was executed."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    draw, size = ImageDraw.Draw(picture), max(10, picture.height // 24)
    font = ImageFont.load_default(size)
    for i, text in enumerate(caption.lines(title)):
        ink = SOLVED if i and caption.solved else OVER if i and caption.over else INK
        place = (size // 2, size // 2 + i * (size + 4))
        draw.text(place, text, fill=ink, font=font, stroke_width=1, stroke_fill=(0, 0, 0))
    if 1 < caption.steps <= CELLS:
        width = picture.width / caption.steps
        for k in range(caption.steps):  # a gap stands between steps, and a wide one at a border
            left, right = round(k * width) + 1, round((k + 1) * width) - 2
            top = picture.height - BAR
            ink = INK if k < caption.used else PALE
            draw.rectangle((left, top, right, picture.height), fill=ink)
    return np.asarray(picture)


def side_by_side(films: list[list[NDArray]]) -> list[NDArray]:
    """Films of one height next to each other; one that ends early stands still, paler."""
    length, heights = max(map(len, films)), {film[0].shape[0] for film in films}
    if len(heights) > 1:
        raise RheoError("these environments draw themselves in different sizes: play them apart")
    still = [film[-1] // 2 for film in films]
    return [
        np.concatenate([film[i] if i < len(film) else still[k] for k, film in enumerate(films)], 1)
        for i in range(length)
    ]


def write(frames: list[NDArray], out: Path, fps: float) -> None:
    """Writes a .gif or .mp4. Raises RheoError for another ending, and where nothing is written."""
    suffix = out.suffix.lower()
    if suffix == ".mp4":
        return atomically(out, lambda part: mp4(frames, part, fps), suffix)
    colours = palette(frames)
    first, *rest = [
        Image.fromarray(frame).quantize(palette=colours, dither=Image.Dither.NONE)
        for frame in frames
    ]
    kind = {"format": "GIF", "save_all": True, "append_images": rest, "loop": 0}

    def gif(part: Path) -> None:
        first.save(part, duration=round(1000 / fps), optimize=False, **kind)

    atomically(out, gif)


def palette(frames: list[NDArray]) -> Image.Image:
    """256 colours for a whole film: where nothing moves, frames are then equal and take no room."""
    some = frames[:: max(1, len(frames) // SAMPLED)]
    return Image.fromarray(np.concatenate(some, 0)).quantize(256)


def mp4(frames: list[NDArray], part: Path, fps: float) -> None:
    """Writes H.264 by imageio's ffmpeg. Raises OSError, and RheoError where it is not installed."""
    try:
        imageio = importlib.import_module("imageio.v2")
        importlib.import_module("imageio_ffmpeg")
    except ImportError as error:
        raise RheoError(f"an .mp4 needs imageio and its ffmpeg: {MP4}; or name a .gif") from error
    height, width = (2 * (side // 2) for side in frames[0].shape[:2])  # which H.264 asks for
    settings = {"format": "FFMPEG", "fps": fps, "codec": "libx264", "macro_block_size": None}
    with imageio.get_writer(part, **settings) as film:
        for frame in frames:
            film.append_data(frame[:height, :width])
    refuse_cut(imageio, part, len(frames))


def refuse_cut(imageio: Any, part: Path, frames: int) -> None:
    """Raises OSError unless a film has its frames: what ffmpeg cannot write it tells nobody."""
    try:
        with imageio.get_reader(part, format="FFMPEG") as film:
            written = film.count_frames()
    except (OSError, RuntimeError) as error:
        raise OSError(errno.EIO, "ffmpeg could not write it; is the disk full?") from error
    if written < frames:
        raise OSError(errno.EIO, f"ffmpeg wrote {written} of {frames} frames; is the disk full?")
