"""The pictures of the demo: each clip as a row of frames, and each clip with its matrix, as a picture and animated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from pusa.cli.demo.page import TaskResult, heat_map

Picture = NDArray[np.uint8]
"""[H, W, 3]"""

INK, SOFT, PAPER, MARK = (29, 27, 24), (120, 113, 103), (255, 255, 255), (194, 65, 12)
ZOOM = 3
"""Each pixel is shown as a square of this side, because the clips of the embedded model are only 64 pixels wide."""


def contact_sheet(results: Sequence[TaskResult], columns: int = 9) -> Picture:
    """Draw a row for each task, with `columns` evenly spaced frames from left to right: uint8 [H, W, 3]."""
    rows = [[_enlarged(frame) for frame in _spread(result, columns)] for result in results]
    side = max(frame.height for row in rows for frame in row)
    width = max(frame.width for row in rows for frame in row)
    gap, head = 6, 40
    sheet = PILImage.new("RGB", (columns * (width + gap) + gap, len(rows) * (side + head) + gap), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (result, row) in enumerate(zip(results, rows, strict=True)):
        top = index * (side + head)
        title = f"{result.title}   "
        draw.text((gap, top + 12), title, INK, _font(18))
        draw.text((gap + draw.textlength(title, _font(18)), top + 14), f"“{result.prompt}”", SOFT, _font(15))
        for column, frame in enumerate(row):
            sheet.paste(frame, (gap + column * (width + gap), top + head))
    return np.asarray(sheet)


def matrix_beside_clip(results: Sequence[TaskResult]) -> Picture:
    """Draw a row for each task, with its matrix on the left and its clip on the right: uint8 [H, W, 3].

    A column of the matrix is a latent frame. A row is a sampling step; the first is at the top. Light cells are clean.
    """
    cell, gap, head, margin = 36, 8, 44, 28
    slots = max(result.matrix.frames for result in results)
    frame = 64 * ZOOM
    left = margin + slots * cell + 36
    height = frame + head + 18
    sheet = PILImage.new("RGB", (left + slots * (frame + gap) + margin - gap, len(results) * height + margin), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, result in enumerate(results):
        top = index * height + 12
        matrix = result.matrix
        draw.text((margin, top + 10), result.title, INK, _font(20))
        after_title = margin + int(draw.textlength(result.title, _font(20))) + gap
        draw.text((max(left, after_title), top + 12), f"“{result.prompt}”", SOFT, _font(17))
        heat = PILImage.fromarray(heat_map(matrix, cell, max(4, frame // matrix.steps)))
        sheet.paste(heat, (margin, top + head + (frame - heat.height) // 2), heat)
        for slot in range(matrix.frames):
            number = result.slot_frames(slot)[-1]
            place = (left + slot * (frame + gap), top + head)
            sheet.paste(_enlarged(result.frames[number]), place)
            if slot in result.given:
                draw.rectangle((place[0] - 3, place[1] - 3, place[0] + frame + 2, place[1] + frame + 2), None, MARK, 3)
    return np.asarray(sheet)


def animation(results: Sequence[TaskResult]) -> list[PILImage.Image]:
    """Draw the frames of an animation: for each task, the clip plays below its matrix, whose current column is marked.

    Returns a picture for each pixel frame of the shortest clip. A column of a matrix is a latent frame. A row is a
    sampling step; the first is at the top. Light cells are clean.
    """
    side, gap, head, cells = 64 * ZOOM, 16, 30, 110
    size = (len(results) * (side + gap) + gap, head + cells + 14 + side + gap)
    still = PILImage.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(still)
    columns = [side // result.matrix.frames for result in results]
    for index, (result, column) in enumerate(zip(results, columns, strict=True)):
        left = gap + index * (side + gap)
        draw.text((left, 6), result.title.partition(",")[0], INK, _font(16))
        heat = PILImage.fromarray(heat_map(result.matrix, column, max(4, cells // result.matrix.steps)))
        heat = heat.resize((column * result.matrix.frames, cells), PILImage.Resampling.NEAREST)
        still.paste(heat, (left, head), heat)
    pictures = []
    for number in range(min(len(result.frames) for result in results)):
        picture = still.copy()
        draw = ImageDraw.Draw(picture)
        for index, (result, column) in enumerate(zip(results, columns, strict=True)):
            left = gap + index * (side + gap)
            slot = next(s for s in range(result.matrix.frames) if number in result.slot_frames(s))
            draw.rectangle(
                (left + slot * column, head - 2, left + (slot + 1) * column, head + cells + 1), None, MARK, 2
            )
            picture.paste(_enlarged(result.frames[number]), (left, head + cells + 14))
            if slot in result.given:
                box = (left - 2, head + cells + 12, left + side + 1, head + cells + 15 + side)
                draw.rectangle(box, None, MARK, 3)
        pictures.append(picture)
    return pictures


def _spread(result: TaskResult, columns: int) -> Picture:
    picked = np.linspace(0, len(result.frames) - 1, columns).round().astype(int)
    spread: Picture = result.frames[picked]
    return spread


def _enlarged(frame: Picture) -> PILImage.Image:
    height, width = frame.shape[:2]
    return PILImage.fromarray(frame).resize((width * ZOOM, height * ZOOM), PILImage.Resampling.NEAREST)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
