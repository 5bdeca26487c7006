"""Step 2: cut the film into its scenes and make a dataset folder of them.

    python recipes/big_buck_bunny/dataset.py --film runs/big_buck_bunny/big_buck_bunny.mp4 --out runs/big_buck_bunny

PySceneDetect finds the cuts (content detector, PyAV decoding); fades, the title and the credits, which it cannot know,
are in the table LEFT_OUT. What is too short for one training sample is left out too; both are listed in scenes.json.
Captions say what can be measured (light, colour, movement) and the number of the scene, and invent nothing.

Writes `dataset/` with scene_000.mp4 ..., metadata.csv and ATTRIBUTION.md; beside it scenes.json, the contact sheet
sheet.png and, for the last step, example.png with example.txt. Scenes that are there are kept, so the command resumes.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pusa import files
from pusa.errors import PusaError
from pusa.media import images, video_probe, videos

FPS = 24
LEFT_OUT = (
    (0.0, 1.5, "fade from black"),
    (24.5, 34.0, "the film's title and a dissolve"),
    (488.5, 581.0, "fade to black and the credits"),
)
"""Seconds of the film that are no scenes, found by looking."""
EXAMPLE = 16
"""The scene whose first frame the last step animates."""
ATTRIBUTION = """# Big Buck Bunny

These clips are scenes of *Big Buck Bunny*, (c) copyright 2008, Blender Foundation, www.bigbuckbunny.org, licensed under
the Creative Commons Attribution 3.0 licence (https://creativecommons.org/licenses/by/3.0/).

Changes: cut into scenes, without the titles and credits; scaled to {width} x {height}; encoded again; sound removed.
The captions are not part of the film. Whoever passes these clips on, or shows what was made with them, names the film
and the Blender Foundation as above.
"""


@dataclass(frozen=True)
class Scene:
    """Frames `first` to `last` (not included) of the film; number: its place among the detected scenes."""

    number: int
    first: int
    last: int

    @property
    def name(self) -> str:
        return f"scene_{self.number:03d}_{self.first:05d}.mp4"

    @property
    def seconds(self) -> float:
        """From its first frame to its last one."""
        return (self.last - self.first - 1) / FPS


def detect(path: Path, record: Path) -> list[tuple[int, int]]:
    """First and last (not included) frame of each scene; `record` keeps them, as finding them takes a minute or two."""
    if record.is_file():
        return [(first, last) for first, last in json.loads(record.read_text())["detected"]]
    from scenedetect import ContentDetector, SceneManager, open_video

    manager = SceneManager()
    manager.add_detector(ContentDetector())
    manager.detect_scenes(open_video(str(path), backend="pyav", suppress_output=True))
    return [(first.frame_num, last.frame_num) for first, last in manager.get_scene_list()]


def choose(detected: list[tuple[int, int]], least: float) -> tuple[list[Scene], list[dict[str, Any]]]:
    """The scenes without what LEFT_OUT names, at least `least` seconds long; and what was left out, with the reason."""
    scenes, dropped = [], [{"from": a, "to": b, "reason": reason} for a, b, reason in LEFT_OUT]
    for number, (first, last) in enumerate(detected):
        pieces = [(first, last)]
        for a, b, _ in LEFT_OUT:
            start, end = round(a * FPS), round(b * FPS)
            pieces = [p for x, y in pieces for p in ((x, min(y, start)), (max(x, end), y)) if p[0] < p[1]]
        for x, y in pieces:
            scene = Scene(number, x, y)
            if scene.seconds >= least:
                scenes.append(scene)
            else:
                reason = f"shorter than {least:g} s"
                dropped.append({"from": round(x / FPS, 3), "to": round(y / FPS, 3), "reason": reason})
    return scenes, dropped


def caption(frames: NDArray[np.uint8], number: int) -> str:
    """What a measurement can say of a clip, uint8 [N, H, W, 3] at 24 frames a second."""
    small = frames[:, ::8, ::8].astype(np.float32)
    light = float((small @ np.array([0.2126, 0.7152, 0.0722], np.float32)).mean())
    moved = float(np.abs(small[3:] - small[:-3]).mean())
    red, green, blue = (float(c) for c in small.mean((0, 1, 2)))
    names = {"reddish": red - max(green, blue), "greenish": green - max(red, blue), "bluish": blue - max(red, green)}
    tint, lead = max(names.items(), key=lambda item: item[1])
    words = [
        "dark" if light < 70 else "bright" if light > 140 else "",
        tint if lead > 8 else "",
        "animated scene",
        "with little movement" if moved < 4 else "with much movement" if moved > 12 else "",
    ]
    text = " ".join(word for word in words if word)
    return f"{'an' if text.startswith('a') else 'a'} {text}, scene {number} of Big Buck Bunny"


def build(path: Path, out: Path, size: tuple[int, int], least: float) -> Path:
    """Make everything that the module's text lists; returns the dataset folder."""
    folder = out / "dataset"
    folder.mkdir(parents=True, exist_ok=True)
    record = out / "scenes.json"
    detected = detect(path, record)
    scenes, dropped = choose(detected, least)
    settings = {"size": list(size), "scenes": [scene.name for scene in scenes]}
    before = json.loads(record.read_text()) if record.is_file() else {}
    fresh = before.get("size") == settings["size"]
    if not fresh:
        for old in folder.glob("scene_*.mp4"):
            old.unlink()
    files.write_json(record, {**settings, "left_out": dropped, "detected": detected})
    for old in folder.glob("scene_*.mp4"):
        if old.name not in settings["scenes"]:
            old.unlink()

    rows, middles, labels = [], [], []
    for done, scene in enumerate(scenes, 1):
        clip = folder / scene.name
        if not clip.is_file():
            frames = video_probe.read(path, np.arange(scene.first, scene.last) / FPS, size)
            videos.write_video(clip, frames, FPS)
        frames, _ = videos.read_video(clip)
        rows.append((scene.name, caption(frames, scene.number)))
        middles.append(images.fit(frames[len(frames) // 2], (160, 90)))
        labels.append(f"{scene.number}: {scene.seconds:.1f} s")
        if scene.number == EXAMPLE:
            images.write_image(out / "example.png", frames[0])
            files.write_text_atomic(out / "example.txt", rows[-1][1])
        print(f"\r{done} of {len(scenes)} scenes", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)

    table = io.StringIO(newline="")
    csv.writer(table, lineterminator="\n").writerows([("file_name", "text"), *rows])
    files.write_text_atomic(folder / "ATTRIBUTION.md", ATTRIBUTION.format(width=size[0], height=size[1]))
    files.write_text_atomic(folder / "metadata.csv", table.getvalue())
    images.write_image(out / "sheet.png", images.contact_sheet(middles, 10, labels))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--film", type=Path, default=Path("runs/big_buck_bunny/big_buck_bunny.mp4"))
    parser.add_argument("--out", type=Path, default=Path("runs/big_buck_bunny"))
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--height", type=int, default=180)
    parser.add_argument("--least", type=float, default=2.0, help="seconds; 17 frames at 8 a second last 2")
    options = parser.parse_args()
    print(build(options.film, options.out, (options.width, options.height), options.least))


if __name__ == "__main__":
    try:
        main()
    except PusaError as error:
        sys.exit(f"dataset.py: {error}")
