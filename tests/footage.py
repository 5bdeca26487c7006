"""Pictures and clips for the tests of files, images and videos, some as other programs write them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image as PILImage

from pusa.media import images


def ramp(height: int = 24, width: int = 32) -> images.Image:
    """A smooth colourful picture, different in all four corners."""
    y, x = np.mgrid[0 : height - 1 : height * 1j, 0 : width - 1 : width * 1j]
    return np.stack([255 * x / width, 255 * y / height, 255 - 120 * x / width], -1).astype(np.uint8)


def clip(count: int = 5, height: int = 32, width: int = 48) -> images.Frames:
    """Frames whose overall brightness names them: frame k is about 20 + 12 k."""
    levels = 20 + 12 * np.arange(count)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).astype(np.uint8)


def numbers(frames: images.Frames) -> list[int]:
    """Which frames of `clip` these are."""
    return [round((float(f.mean()) - 20) / 12) for f in frames]


def encode(
    path: Path,
    frames: images.Frames,
    fps: float,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    times: list[float] | None = None,
    sound: bool = False,
) -> Path:
    """A file as another program might write it; `times` in seconds makes a variable frame rate."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], pixels
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        audio: Any = container.add_stream("aac", rate=8000, layout="mono") if sound else None
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
            if times:
                frame.pts, frame.time_base = round(1000 * times[index]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.sample_rate = 8000
            container.mux(audio.encode(silence))
            container.mux(audio.encode(None))
    return path


def animated(path: Path) -> None:
    """Four pictures in one file."""
    frames = [PILImage.fromarray(np.full((8, 8, 3), 60 * i, np.uint8)) for i in range(4)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def cut(path: Path, share: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(float) - b) ** 2), 1e-9)))


def no_leftovers(folder: Path, *expected: str) -> bool:
    return sorted(p.name for p in folder.iterdir()) == sorted(expected)
