"""Make the videos of a manifest: image-to-video from the official crops. Each picture and each prompt is encoded once.

A picture has up to 40 videos and a prompt has five, so videos are made picture by picture. Any number of processes may
fill one folder. Each video is made by one process and checked after it is written.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from PIL import Image as PILImage
from torch import Tensor

from pusa.errors import InputError, PusaError
from pusa.evaluation.vbench import verification
from pusa.evaluation.vbench.manifest import Manifest, Video, shape_of
from pusa.files import replacing, write_json
from pusa.generation.conditions import Target, resolve
from pusa.generation.given import Image
from pusa.generation.pipeline import Pipeline
from pusa.media.images import read_image
from pusa.media.orientation import shown_size
from pusa.media.videos import write_video
from pusa.models.backbone import Text
from pusa.work.units import Unit

CRF = 10
"""the quality of the official example"""
NAMED = 4
"""how many files an error message names"""


def ordered(manifest: Manifest) -> list[Video]:
    """The videos, picture by picture and then prompt by prompt."""
    return sorted(manifest.videos, key=lambda video: (video.image, video.prompt, video.index))


def check_images(manifest: Manifest, images: Path) -> None:
    """Raise InputError unless every picture of the manifest is in the folder and has the shape of the crop."""
    if not images.is_dir():
        raise InputError(f"There is no folder {images}; give the official crops {manifest.crop}.")
    wanted = list(dict.fromkeys(video.image for video in ordered(manifest)))
    if missing := [name for name in wanted if not (images / name).is_file()]:
        raise InputError(f"{images} lacks {_some(missing)}; give the official crops {manifest.crop}.")
    shapes = {name: _size(images / name) for name in wanted}
    wrong = [name for name, (width, height) in shapes.items() if shape_of(width / height) != manifest.crop]
    if wrong:
        (width, height), crop = shapes[wrong[0]], manifest.crop
        raise InputError(
            f"{images}: {_some(wrong)} {'are' if wrong[1:] else 'is'} not {crop.replace('-', ':')} (the first is "
            f"{width}x{height}); give the official crops {crop} for videos of {manifest.size[0]}x{manifest.size[1]}."
        )


def content_of(manifest: Manifest, images: Path) -> str:
    """A hash of the pictures, so that all videos of a run are made from the same pictures."""
    digest = hashlib.sha256()
    for name in sorted({video.image for video in manifest.videos}):
        digest.update(name.encode() + hashlib.sha256((images / name).read_bytes()).digest())
    return digest.hexdigest()[:16]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _size(path: Path) -> tuple[int, int]:
    """The width and height of a picture as it is shown, from its header if possible."""
    try:
        with PILImage.open(path) as picture:
            return shown_size(picture)
    except (OSError, ValueError, PILImage.DecompressionBombError):
        height, width = read_image(path).shape[:2]  # it raises an error that says what is wrong
        return width, height


class VideoMaker:
    """Makes the videos with a loaded model.

    settings: steps, guidance and so on, as `Limits.settings` takes them. negative_prompt: that of every video.
    """

    def __init__(
        self,
        pipe: Pipeline,
        manifest: Manifest,
        images: Path,
        folder: Path,
        noise: float,
        settings: Mapping[str, Any],
        negative_prompt: str = "",
    ) -> None:
        self.pipe, self.manifest, self.images, self.folder, self.noise = pipe, manifest, images, folder, noise
        self.settings = pipe.limits.settings(frames=manifest.frames, size=manifest.size, **settings)
        self.encoded = {"pictures": 0, "prompts": 0}
        self._known = lru_cache(maxsize=1)(self._encode_picture)
        self._text = lru_cache(maxsize=2)(self._encode_text)
        self.negative_prompt = negative_prompt
        self._negative: Text | None = None

    def units(self, files: Iterable[str]) -> list[Unit]:
        """A unit of work for each of these videos."""
        wanted = set(files)
        return [
            Unit(
                video.file,
                self.folder / verification.VIDEOS / video.file,
                partial(self.make, video),
                also=(verification.recipe_path(self.folder, video.file),),
            )
            for video in ordered(self.manifest)
            if video.file in wanted
        ]

    def make(self, video: Video) -> None:
        """Make one video, check it, and write it and its recipe."""
        started = time.perf_counter()
        settings, known = self.settings, self._known(video.image)
        text = self._text(video.prompt)
        if self._negative is None:
            self._negative = self._encode_text(self.negative_prompt)
        matrix = self.pipe.matrix(settings, known)
        z = self.pipe.sample(matrix, (text, self._negative), settings, known=known, seed=video.seed)
        frames = self.pipe.decode(z)
        path = self.folder / verification.VIDEOS / video.file
        with replacing(path) as part:
            write_video(part, frames, self.manifest.fps, crf=CRF)
            if problem := verification.check_video(part, self.manifest):
                raise PusaError(f"{path} {problem.what} right after it was written; check the disk.")
            content = hashlib.sha256(part.read_bytes()).hexdigest()
            recipe = {
                "prompt": video.prompt,
                "image": video.image,
                "index": video.index,
                "seed": video.seed,
                **({"negative_prompt": self.negative_prompt} if self.negative_prompt else {}),
                "noise": self.noise,
                **settings.record(),
                **self.pipe.recipe(),
                "sha256": content,
                "seconds": round(time.perf_counter() - started, 3),
            }
            write_json(verification.recipe_path(self.folder, video.file), recipe)

    def _encode_picture(self, name: str) -> dict[int, tuple[Tensor, float]]:
        self.encoded["pictures"] += 1
        target = Target(self.manifest.frames, self.manifest.size, self.manifest.fps, "crop", self.pipe.backbone)
        return resolve([Image(self.images / name, noise=self.noise)], target)[0]

    def _encode_text(self, prompt: str) -> Text:
        self.encoded["prompts"] += bool(prompt)
        return self.pipe.encode_text([prompt])
