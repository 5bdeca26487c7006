"""Make the videos of a track: image-to-video from the picture, or an extension of the three seconds before it.

A video is extended, window by window, until it is five seconds long. Only the new frames are kept, as the benchmark
requires. `videos/` contains only videos; `recipes/` contains how each was made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pusa.errors import InputError, PusaError
from pusa.evaluation.physics_iq.dataset import (
    GIVEN_SECONDS,
    PICTURES,
    PREFIXES,
    SECONDS,
    Dataset,
    Scene,
    check_sources,
)
from pusa.files import replacing, write_json
from pusa.generation.given import Image
from pusa.generation.limits import Limits
from pusa.generation.pipeline import Pipeline, extend
from pusa.media.images import Frames, fit
from pusa.media.videos import read_video, write_video
from pusa.work.units import Unit

Track = Literal["i2v", "v2v"]
VIDEOS, RECIPES = "videos", "recipes"


def check(dataset: Dataset, scenes: Sequence[Scene], track: Track, limits: Limits, settings: Mapping[str, Any]) -> None:
    """Raise InputError if a source is missing, or if the model cannot make such videos. No model is loaded.

    settings: as for `VideoMaker`.
    """
    fps, geometry = limits.defaults.fps, limits.geometry
    count = _frames(fps)
    sampling = {name: value for name, value in settings.items() if name != "negative_prompt"}
    if track == "i2v":
        check_sources([(scene, dataset.picture(scene)) for scene in scenes], f"pictures in {PICTURES}")
        limits.settings(frames=geometry.pixel_frames(geometry.slot_of(count - 1) + 1), **sampling)
    else:
        check_sources([(scene, dataset.prefix(scene, fps)) for scene in scenes], f"first seconds in {PREFIXES}")
        limits.settings(frames=sum(limits.window(None, None, clips=1)), **sampling)


def _frames(fps: float) -> int:
    """The frames of a video. Raises InputError if this is not a whole number."""
    if abs(round(SECONDS * fps) - SECONDS * fps) > 1e-6:
        raise InputError(
            f"The model makes {fps:g} frames per second, which is not a whole number of frames in {SECONDS} s; "
            "choose another model."
        )
    return round(SECONDS * fps)


class VideoMaker:
    """Makes the videos with a loaded model. settings: steps, guidance and so on, as `Pipeline.generate` takes them."""

    def __init__(
        self,
        pipe: Pipeline,
        dataset: Dataset,
        scenes: Sequence[Scene],
        folder: Path,
        track: Track,
        seed: int,
        settings: Mapping[str, Any],
    ) -> None:
        self.pipe, self.dataset, self.scenes, self.folder = pipe, dataset, scenes, folder
        self.track, self.seed, self.settings = track, seed, dict(settings)
        self.count = _frames(pipe.defaults.fps)

    def units(self) -> list[Unit]:
        """A unit of work for each video."""
        return [
            Unit(scene.file, self.folder / VIDEOS / scene.file, partial(self.make, scene), also=(self._recipe(scene),))
            for scene in self.scenes
        ]

    def _recipe(self, scene: Scene) -> Path:
        return self.folder / RECIPES / f"{Path(scene.file).stem}.json"

    def seed_of(self, scene: Scene) -> int:
        """The seed of a scene, from 0 to 2^53 − 1: a function of the run's seed and the scene."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}\n{scene.file}".encode()).digest()[:8], "big") >> 11

    def make(self, scene: Scene) -> None:
        """Make one video, write it and its recipe, and read it to check it."""
        seed = self.seed_of(scene)
        frames, recipe = self._image(scene, seed) if self.track == "i2v" else self._extension(scene, seed)
        path, fps = self.folder / VIDEOS / scene.file, self.pipe.defaults.fps
        with replacing(path) as part:
            write_video(part, frames, fps)
            if len(read_video(part)[0]) != self.count:
                raise PusaError(f"{path} differs from what was written; check the disk.")
            self._recipe(scene).parent.mkdir(exist_ok=True)
            write_json(self._recipe(scene), {"track": self.track, **recipe})

    def _image(self, scene: Scene, seed: int) -> tuple[Frames, dict[str, Any]]:
        geometry = self.pipe.backbone.geometry
        length = geometry.pixel_frames(geometry.slot_of(self.count - 1) + 1)
        clip = self.pipe.generate(
            scene.prompt, [Image(self.dataset.picture(scene))], frames=length, seed=seed, **self.settings
        )
        return clip.frames[: self.count], clip.recipe

    def _extension(self, scene: Scene, seed: int) -> tuple[Frames, dict[str, Any]]:
        fps = self.pipe.defaults.fps
        path = self.dataset.prefix(scene, fps)
        assert path is not None
        given, _ = read_video(path, fps)
        last = given[-min(len(given), round(GIVEN_SECONDS * fps)) :]
        last = fit(last[len(last) - self.pipe.backbone.geometry.whole(len(last)) :], self.pipe.defaults.size)
        clip = extend(self.pipe, last, scene.prompt, seed=seed, **self.settings)
        first, windows = clip.recipe, 1
        while len(clip.frames) - len(last) < self.count:
            clip = extend(self.pipe, clip, scene.prompt, seed=seed + windows, **self.settings)
            windows += 1
        return clip.frames[len(last) : len(last) + self.count], {**first, "windows": windows}
