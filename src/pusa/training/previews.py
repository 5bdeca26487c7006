"""Clips made in the middle of a training, by the very model that is trained, and one sheet that shows them all.

The pipeline is built around the components as they are: no second copy of the weights. Afterwards every part is in the
mode it was in and every random stream where it was: a training with previews is bit for bit the one without.
Conditions are latents of held-out clips, taken as they are; their captions are the prompts, in the contexts that were
cached with them. The seeds are fixed, so that one sheet after another shows the same clips growing better.
"""

from __future__ import annotations

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
from pusa.images import Frames, write_image
from pusa.models.loading.checkpoints import Components
from pusa.models.wan import latents
from pusa.models.wan.latents import frames_of, pixel_frames
from pusa.training.random_draws import LEAST_FRAMES
from pusa.training.validation import Sample, given, undisturbed
from pusa.videos import write_video

CLIPS = 2
"""So many held-out clips are shown for each task."""
SHEET = "sheet.png"


class HeldOut(Sample, Protocol):
    """A held-out clip, as `cache.Sample` has it."""

    @property
    def caption(self) -> str: ...


class Settings(Protocol):
    """`Config.preview`: what is made, and how it is sampled (None: as the model likes)."""

    @property
    def tasks(self) -> Sequence[str]: ...
    @property
    def prompts(self) -> Sequence[str] | None: ...
    @property
    def steps(self) -> int | None: ...
    @property
    def guidance(self) -> float | None: ...


@dataclass(frozen=True, eq=False)
class Preview:
    """A clip that was made. given: the latent frames that were given. truth: the held-out clip, decoded."""

    task: str
    prompt: str
    path: Path
    frames: Frames
    matrix: TimestepMatrix
    given: tuple[int, ...]
    truth: Frames
    seed: int


@dataclass(frozen=True, eq=False)
class _Order:
    task: str
    number: int
    prompt: str
    context: Tensor  # [512, D]
    clip: HeldOut


def make(
    components: Components,
    held_out: Sequence[HeldOut],
    step: int,
    folder: Path,
    settings: Settings,
    *,
    empty_context: Tensor | None = None,
    seed: int = 0,
    write: bool = True,
) -> list[Preview]:
    """Make the clips that `settings` ask for and write `folder`/TASK_I.mp4 and `folder`/sheet.png.

    Every task is shown on the first held-out clips. Prompts, where given, replace their captions one by one; a task
    that a clip is too short for is left out, which the sheet shows. empty_context: [512, D], of the empty prompt, for
    guidance; None encodes it. write: False makes the clips (with several processes all must) and no files.

    Raises InputError when there is no held-out clip or none is long enough for any task.
    """
    if not len(held_out):
        raise InputError("There is no held-out clip to make previews from: set data.held_out, or preview.every = 0.")
    pipeline = Pipeline(components)
    models = components.transformer, components.vae, components.text_encoder
    with undisturbed(*models):
        orders = _orders(pipeline, held_out, settings)
        if empty_context is None:
            empty_context = pipeline.encode_text([""])[0]
        previews = [_make(pipeline, order, empty_context, settings, folder, seed) for order in orders]
        for preview in previews if write else ():
            folder.mkdir(parents=True, exist_ok=True)
            write_video(preview.path, preview.frames, pipeline.defaults.fps)
        if write:
            write_image(folder / SHEET, sheet(previews, f"step {step}"))
    return previews


def _orders(pipeline: Pipeline, held_out: Sequence[HeldOut], settings: Settings) -> list[_Order]:
    prompts = list(settings.prompts or ())
    count = min(len(held_out), len(prompts) or CLIPS)
    clips = [held_out[i] for i in range(count)]
    encoded = list(pipeline.encode_text(prompts)) if prompts else []
    orders = []
    for task in settings.tasks:
        for i in range(max(count, len(prompts))):
            clip = clips[i % count]
            if clip.latents.shape[1] < LEAST_FRAMES[task]:
                continue
            prompt, context = (prompts[i], encoded[i]) if prompts else (clip.caption, clip.context)
            orders.append(_Order(task, i, prompt, context, clip))
    if not orders:
        raise InputError(
            f"No held-out clip is long enough for a preview of {', '.join(settings.tasks)}: add text-to-video to "
            "preview.tasks, or hold longer clips out."
        )
    return orders


def _make(pipeline: Pipeline, order: _Order, empty: Tensor, settings: Settings, folder: Path, seed: int) -> Preview:
    z = order.clip.latents.float()[None].cpu()
    factor = int(pipeline.vae.config.scale_factor_spatial)
    slots, height, width = z.shape[2:]
    wishes = pipeline.limits.settings(
        frames=pixel_frames(slots),
        size=(width * factor, height * factor),
        steps=settings.steps,
        guidance=settings.guidance,
    )
    held = given(order.task, slots)
    known = {slot: (z[:, :, slot : slot + 1], 0.0) for slot in held}
    matrix = pipeline.matrix(wishes, known)
    dtype, device = pipeline.transformer.dtype, pipeline.device
    text = order.context[None].to(device, dtype), empty[None].to(device, dtype)
    made = pipeline.sample(matrix, text, wishes, known=known, seed=seed + order.number)
    path = folder / f"{order.task}_{order.number}.mp4"
    frames, truth = pipeline.decode(made), latents.decode(pipeline.vae, z)
    return Preview(order.task, order.prompt, path, frames, matrix, tuple(held), truth, seed + order.number)


# ------------------------------------------------------------------------------------------------------------ the sheet

INK, SOFT, PAPER, MARK = (29, 27, 24), (120, 113, 103), (255, 255, 255), (194, 65, 12)
COLUMNS, FRAME, GAP, HEAD = 8, 112, 6, 24


def sheet(previews: Sequence[Preview], title: str) -> NDArray[np.uint8]:
    """A block per preview, uint8 [H, W, 3]: the timestep matrix, the held-out clip above, the clip that was made below.

    A picture per latent frame (at most eight, spread evenly). Given frames are framed and shown in full in the upper
    row; the rest of the held-out clip, which the model did not see, is pale.
    """
    blocks = [_block(preview) for preview in previews]
    width = max(block.width for block in blocks)
    page = PILImage.new("RGB", (width + 2 * GAP, 34 + sum(block.height for block in blocks)), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((GAP, 8), title, INK, _font(16))
    legend = "above: the held-out clip, what is given of it framed; below: the clip that was made"
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
        number = frames_of(slot)[-1]
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
    """The matrix with cells of this size, columns at most as wide as the clip is shown."""
    cells = PILImage.fromarray(matrix.image(16).numpy())
    size = min(width * matrix.frames, COLUMNS * width), height * matrix.steps
    return cells.resize(size, PILImage.Resampling.BOX)


def _cut(text: str, draw: ImageDraw.ImageDraw, width: float) -> str:
    """The text, or as much of it as fits with an ellipsis."""
    text = " ".join(text.split())
    if draw.textlength(text, _font(12)) <= width:
        return text
    while text and draw.textlength(text + "…", _font(12)) > width:
        text = text[: -max(1, len(text) // 16)]
    return text + "…"


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
