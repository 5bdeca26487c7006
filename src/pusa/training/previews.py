"""Previews: clips that the trained model generates during the training, and one sheet with all of them.

The pipeline uses the components of the training, without a copy of the weights. Afterwards the modes of all modules and
the states of all random generators are restored, so previews do not change the training, bit for bit. The conditions
are latents of held-out clips, or of pictures that the user gives. The prompts are their captions, with the cached
contexts. The seeds are fixed, so the sheets of a training show the same clips.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont
from torch import Tensor

from pusa.core.timesteps import TimestepMatrix
from pusa.errors import InputError
from pusa.generation.pipeline import Pipeline
from pusa.media.images import Frames, fit, read_image, write_image
from pusa.media.videos import write_video
from pusa.models.backbone import Backbone, Geometry, Text
from pusa.training.data.samples import Bucket
from pusa.training.random_draws import LEAST_FRAMES
from pusa.training.validation import Sample, given, undisturbed

CLIPS = 2
"""The number of held-out clips that are shown for each task."""
SHEET = "sheet.png"


class HeldOut(Sample, Protocol):
    """A held-out clip with its caption, such as a `cache.Sample`."""

    @property
    def caption(self) -> str: ...


class Settings(Protocol):
    """The settings of `Config.preview`: tasks, prompts, sampling steps and guidance (None: the model's default)."""

    @property
    def tasks(self) -> Sequence[str]: ...
    @property
    def prompts(self) -> Sequence[str] | None: ...
    @property
    def steps(self) -> int | None: ...
    @property
    def guidance(self) -> float | None: ...


@dataclass(frozen=True, eq=False)
class PictureClip:
    """A clip that shows a picture in every frame, in place of a held-out clip. caption: its prompt."""

    key: str
    latents: Tensor
    context: Tensor
    caption: str


@dataclass(frozen=True, eq=False)
class Preview:
    """A generated clip. given: the given latent frames. truth: the decoded held-out clip, uint8 [F, H, W, 3]."""

    task: str
    prompt: str
    path: Path
    frames: Frames
    matrix: TimestepMatrix
    given: tuple[int, ...]
    truth: Frames
    seed: int
    geometry: Geometry


@dataclass(frozen=True, eq=False)
class _Job:
    """A clip to generate. context: [512, D]."""

    task: str
    number: int
    prompt: str
    context: Tensor  # [L, D]
    clip: HeldOut


def make(
    components: Backbone,
    held_out: Sequence[HeldOut],
    step: int,
    folder: Path,
    settings: Settings,
    *,
    empty_context: Tensor | None = None,
    seed: int = 0,
    write: bool = True,
) -> list[Preview]:
    """Generate the clips of `settings`, and write `folder`/TASK_I.mp4 and `folder`/sheet.png.

    Each task uses the first held-out clips. If there are prompts, they replace the captions. If a clip is too short for
    a task, this preview is left out. empty_context: the context of the empty prompt for guidance, [L, D]; None encodes
    it. write: False generates the clips and writes no files. With several processes, all must generate, and rank 0
    writes.

    Raises InputError if there are no held-out clips, or if all are too short for all tasks.
    """
    if not len(held_out):
        raise InputError(
            "Previews need held-out clips, and there are none: set data.held_out, give preview.prompts with "
            "preview.pictures, or set preview.every to 0."
        )
    pipeline = Pipeline(components)
    models = components.transformer, components.vae, components.text_encoder
    with undisturbed(*models):
        jobs = _jobs(pipeline, held_out, settings)
        if empty_context is None:
            empty_context = pipeline.encode_text([""]).tokens[0]
        previews = [_make(pipeline, job, empty_context, settings, folder, seed) for job in jobs]
        for preview in previews if write else ():
            folder.mkdir(parents=True, exist_ok=True)
            write_video(preview.path, preview.frames, pipeline.defaults.fps)
        if write:
            write_image(folder / SHEET, sheet(previews, f"step {step}"))
    return previews


def clips_of(
    components: Backbone, pictures: Sequence[Path], prompts: Sequence[str], buckets: Sequence[Bucket]
) -> list[PictureClip]:
    """Return a clip for each picture and its prompt.

    buckets: of the training samples. A picture is cropped to the one that keeps most of it, the longest of these.
    Raises InputError if a picture cannot be read.
    """
    clips = []
    longest = max(bucket.frames for bucket in buckets)
    with undisturbed(components.vae, components.text_encoder):
        for path, prompt in zip(pictures, prompts, strict=True):
            picture = read_image(path)
            shape = picture.shape[1] / picture.shape[0]
            sizes = [(bucket.width, bucket.height) for bucket in buckets if bucket.frames == longest]
            width, height = min(sizes, key=lambda size: abs(math.log(size[0] / size[1] / shape)))
            frames = np.repeat(fit(picture, (width, height))[None], longest, axis=0)
            latents, context = components.encode(frames)[0].cpu(), components.encode_text([prompt]).tokens[0].cpu()
            clips.append(PictureClip(f"{path.name} {width}x{height}", latents, context, prompt))
    return clips


def _jobs(pipeline: Pipeline, held_out: Sequence[HeldOut], settings: Settings) -> list[_Job]:
    prompts = list(settings.prompts or ())
    count = min(len(held_out), len(prompts) or CLIPS)
    clips = [held_out[i] for i in range(count)]
    encoded = list(pipeline.encode_text(prompts).tokens) if prompts else []
    jobs = []
    for task in settings.tasks:
        for i in range(max(count, len(prompts))):
            clip = clips[i % count]
            if clip.latents.shape[1] < LEAST_FRAMES[task]:
                continue
            prompt, context = (prompts[i], encoded[i]) if prompts else (clip.caption, clip.context)
            jobs.append(_Job(task, i, prompt, context, clip))
    if not jobs:
        raise InputError(
            f"The held-out clips are too short for previews of {', '.join(settings.tasks)}: add text-to-video to "
            "preview.tasks, or use longer clips."
        )
    return jobs


def _make(pipeline: Pipeline, job: _Job, empty: Tensor, settings: Settings, folder: Path, seed: int) -> Preview:
    z = job.clip.latents.float()[None].cpu()
    geometry = pipeline.backbone.geometry
    slots, height, width = z.shape[2:]
    chosen = pipeline.limits.settings(
        frames=geometry.pixel_frames(slots),
        size=(width * geometry.spatial, height * geometry.spatial),
        steps=settings.steps,
        guidance=settings.guidance,
    )
    held = given(job.task, slots)
    known = {slot: (z[:, :, slot : slot + 1], 0.0) for slot in held}
    matrix = pipeline.matrix(chosen, known)
    dtype, device = pipeline.transformer.dtype, pipeline.device
    text = Text.padded(job.context[None]).to(device, dtype), Text.padded(empty[None]).to(device, dtype)
    made = pipeline.sample(matrix, text, chosen, known=known, seed=seed + job.number)
    path = folder / f"{job.task}_{job.number}.mp4"
    frames, truth = pipeline.decode(made), pipeline.backbone.decode(z)
    return Preview(job.task, job.prompt, path, frames, matrix, tuple(held), truth, seed + job.number, geometry)


# ------------------------------------------------------------------------------------------------------------ the sheet

INK, SOFT, PAPER, MARK = (29, 27, 24), (120, 113, 103), (255, 255, 255), (194, 65, 12)
COLUMNS, FRAME, GAP, HEAD = 8, 112, 6, 24


def sheet(previews: Sequence[Preview], title: str) -> NDArray[np.uint8]:
    """Draw one block for each preview: the timestep matrix, the held-out clip (above) and the generated clip (below).

    Returns uint8 [H, W, 3]. A row has one picture for each latent frame, at most eight. Given frames have a border. The
    other frames of the held-out clip, which the model did not get, are pale.
    """
    blocks = [_block(preview) for preview in previews]
    width = max(block.width for block in blocks)
    page = PILImage.new("RGB", (width + 2 * GAP, 34 + sum(block.height for block in blocks)), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((GAP, 8), title, INK, _font(16))
    legend = "above: the held-out clip or the picture, given frames with a border; below: the generated clip"
    draw.text((GAP + draw.textlength(title, _font(16)) + 14, 11), legend, SOFT, _font(12))
    top = 34
    for block in blocks:
        page.paste(block, (GAP, top))
        top += block.height
    return np.asarray(page)


def _block(preview: Preview) -> PILImage.Image:
    slots = sorted({round(i) for i in np.linspace(0, preview.matrix.frames - 1, min(COLUMNS, preview.matrix.frames))})
    slots = sorted({*slots[: COLUMNS - 1], *slots[-1:]})
    height = max(2, round(FRAME * preview.frames.shape[1] / preview.frames.shape[2]))
    both = 2 * height + GAP
    heat = _heat(preview.matrix, 20, max(4, both // preview.matrix.steps))
    left = heat.width + 16
    block = PILImage.new("RGB", (left + len(slots) * (FRAME + GAP), HEAD + max(both, heat.height) + 10), PAPER)
    draw = ImageDraw.Draw(block)
    draw.text((0, 3), preview.task, INK, _font(14))
    offset = draw.textlength(preview.task, _font(14)) + 10
    seed = f"seed {preview.seed}"
    draw.text((offset, 5), seed, SOFT, _font(12))
    offset += draw.textlength(seed, _font(12)) + 10
    draw.text((offset, 5), _cut(f"“{preview.prompt}”", draw, block.width - offset), SOFT, _font(12))
    block.paste(heat, (0, HEAD))
    for column, slot in enumerate(slots):
        number = preview.geometry.frames_of(slot)[-1]
        x = left + column * (FRAME + GAP)
        known = slot in preview.given
        for y, clip in ((HEAD, preview.truth), (HEAD + height + GAP, preview.frames)):
            picture = PILImage.fromarray(clip[number]).resize((FRAME, height), PILImage.Resampling.LANCZOS)
            if clip is preview.truth and not known:
                picture = PILImage.blend(picture, PILImage.new("RGB", picture.size, PAPER), 0.6)
            block.paste(picture, (x, y))
            if known:
                draw.rectangle((x - 2, y - 2, x + FRAME + 1, y + height + 1), None, MARK, 2)
    return block


def _heat(matrix: TimestepMatrix, width: int, height: int) -> PILImage.Image:
    """Draw the matrix with cells of `width` × `height` pixels; it is at most COLUMNS cells wide."""
    cells = PILImage.fromarray(matrix.image(16).numpy())
    size = min(width * matrix.frames, COLUMNS * width), height * matrix.steps
    return cells.resize(size, PILImage.Resampling.BOX)


def _cut(text: str, draw: ImageDraw.ImageDraw, width: float) -> str:
    """Return the text, cut with an ellipsis to `width` pixels."""
    text = " ".join(text.split())
    if draw.textlength(text, _font(12)) <= width:
        return text
    while text and draw.textlength(text + "…", _font(12)) > width:
        text = text[: -max(1, len(text) // 16)]
    return text + "…"


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
