"""What each measure makes of a real clip and of the same clip spoilt in known ways, as a table in Markdown.

    python benchmarks/controls.py CLIP [--frames 81] [--size 416x240]

A measure is trusted for what it orders rightly here, and the table also shows which measures a frozen or blurred clip
wins. The tests hold the orders.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from pusa.evaluation.clips import measures, seams
from pusa.evaluation.clips.optical_flow import Motion
from pusa.media.images import Frames, fit
from pusa.media.videos import read_video

SHOWN = ("flicker", "warp_error", "smoothness", "dynamic", "sharpness_kept", "colour_drift", "luma_drift")
SEAMS = ("difference", "luma", "residual", "acceleration")


def blurred(clip: Frames) -> Frames:
    """More and more, to a deviation of a hundredth of the width."""
    last = clip.shape[2] / 100
    return np.stack([cv2.GaussianBlur(f, (0, 0), 0.01 + last * t / len(clip)) for t, f in enumerate(clip)])


def gained(clip: Frames, percent: float) -> Frames:
    """The second half brighter."""
    bright = clip.astype(np.float32)
    bright[len(clip) // 2 :] *= 1 + percent / 100
    return np.clip(np.rint(bright), 0, 255).astype(np.uint8)


def flickering(clip: Frames) -> Frames:
    """Every other frame 2 % brighter."""
    bright = clip.astype(np.float32)
    bright[::2] *= 1.02
    return np.clip(np.rint(bright), 0, 255).astype(np.uint8)


def shifted(clip: Frames) -> Frames:
    """The second half moved by a sixteenth of the width."""
    half = len(clip) // 2
    return np.concatenate([clip[:half], np.roll(clip[half:], clip.shape[2] // 16, axis=2)])


def reversed_half(clip: Frames) -> Frames:
    """The second half backwards."""
    half = len(clip) // 2
    return np.concatenate([clip[:half], clip[half:][::-1]])


def drifting(clip: Frames) -> Frames:
    """Red rises by a quarter, blue falls by 15 %."""
    ramp = np.linspace(0, 1, len(clip))[:, None, None]
    bright = clip.astype(np.float32)
    bright[..., 0] *= 1 + 0.25 * ramp
    bright[..., 2] *= 1 - 0.15 * ramp
    return np.clip(np.rint(bright), 0, 255).astype(np.uint8)


CONTROLS: dict[str, Callable[[Frames], Frames]] = {
    "as it is": lambda clip: clip,
    "frozen": lambda clip: np.repeat(clip[:1], len(clip), axis=0),
    "blurred more and more": blurred,
    "shuffled": lambda clip: clip[np.random.default_rng(0).permutation(len(clip))],
    "flickering by 2 %": flickering,
    "second half 2 % brighter": lambda clip: gained(clip, 2),
    "second half shifted": shifted,
    "second half backwards": reversed_half,
    "colours drifting": drifting,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--size", default="416x240")
    args = parser.parse_args()
    frames, fps = read_video(args.clip)
    width, height = map(int, args.size.split("x"))
    clip = fit(frames[: args.frames], (width, height))
    heads = ["", *(measures.MEASURES[name].title for name in SHOWN), *(f"z: {seams.TITLES[name]}" for name in SEAMS)]
    print(f"| {' | '.join(heads)} |\n| --- |{' ---: |' * (len(heads) - 1)}")
    took = []
    for name, spoil in CONTROLS.items():
        spoilt = spoil(clip)
        started = time.perf_counter()
        motion = Motion(spoilt)
        found = measures.measure(spoilt, fps, motion)
        z = seams.seam(spoilt, motion, len(spoilt) // 2)
        took.append(time.perf_counter() - started)
        numbers = [f"{found[key]:.4f}" if key in ("flicker", "smoothness") else f"{found[key]:.2f}" for key in SHOWN]
        print(f"| {name} | {' | '.join([*numbers, *(f'{z[key]:.1f}' for key in SEAMS)])} |", flush=True)
    print(f"\n{args.clip.name}, {len(clip)} frames of {args.size}; {np.median(took):.1f} s a clip")


if __name__ == "__main__":
    main()
