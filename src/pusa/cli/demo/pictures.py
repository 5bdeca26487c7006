"""The demo's pictures: every clip as a row of frames, and matrices beside the clips they make, still and moving."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from pusa.cli.demo.page import Exhibit, heat_map

Picture = NDArray[np.uint8]
"""[H, W, 3]"""

INK, SOFT, PAPER, MARK = (29, 27, 24), (120, 113, 103), (255, 255, 255), (194, 65, 12)
ZOOM = 3
"""The embedded model's clips are 64 pixels wide; each pixel is shown as a square of this side."""


def contact_sheet(exhibits: Sequence[Exhibit], columns: int = 9) -> Picture:
    """A row per task, evenly spaced frames from left to right: uint8 [H, W, 3]."""
    rows = [[_enlarged(frame) for frame in _spread(exhibit, columns)] for exhibit in exhibits]
    side = max(frame.height for row in rows for frame in row)
    width = max(frame.width for row in rows for frame in row)
    gap, head = 6, 40
    sheet = PILImage.new("RGB", (columns * (width + gap) + gap, len(rows) * (side + head) + gap), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (exhibit, row) in enumerate(zip(exhibits, rows, strict=True)):
        top = index * (side + head)
        title = f"{exhibit.title}   "
        draw.text((gap, top + 12), title, INK, _font(18))
        draw.text((gap + draw.textlength(title, _font(18)), top + 14), f"“{exhibit.prompt}”", SOFT, _font(15))
        for column, frame in enumerate(row):
            sheet.paste(frame, (gap + column * (width + gap), top + head))
    return np.asarray(sheet)


def matrix_beside_clip(exhibits: Sequence[Exhibit]) -> Picture:
    """The idea in one picture: a row per task, its matrix on the left and its clip on the right: uint8 [H, W, 3].

    Columns of the matrix are latent frames, rows are sampling steps from the first at the top; pale is clean.
    """
    cell, gap, head, margin = 36, 8, 44, 28
    slots = max(exhibit.matrix.frames for exhibit in exhibits)
    frame = 64 * ZOOM
    left = margin + slots * cell + 36
    height = frame + head + 18
    sheet = PILImage.new("RGB", (left + slots * (frame + gap) + margin - gap, len(exhibits) * height + margin), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, exhibit in enumerate(exhibits):
        top = index * height + 12
        matrix = exhibit.matrix
        draw.text((margin, top + 10), exhibit.title, INK, _font(20))
        after_title = margin + int(draw.textlength(exhibit.title, _font(20))) + gap
        draw.text((max(left, after_title), top + 12), f"“{exhibit.prompt}”", SOFT, _font(17))
        heat = PILImage.fromarray(heat_map(matrix, cell, max(4, frame // matrix.steps)))
        sheet.paste(heat, (margin, top + head + (frame - heat.height) // 2), heat)
        for slot in range(matrix.frames):
            number = exhibit.slot_frames(slot)[-1]
            place = (left + slot * (frame + gap), top + head)
            sheet.paste(_enlarged(exhibit.frames[number]), place)
            if slot in exhibit.given:
                draw.rectangle((place[0] - 3, place[1] - 3, place[0] + frame + 2, place[1] + frame + 2), None, MARK, 3)
    return np.asarray(sheet)


def animation(exhibits: Sequence[Exhibit]) -> list[PILImage.Image]:
    """The idea, moving: a panel per task, the clip that plays below its matrix, whose present column is marked.

    One picture for each pixel frame of the shortest clip. Columns of a matrix are latent frames, rows are sampling
    steps from the first at the top; pale is clean.
    """
    side, gap, head, cells = 64 * ZOOM, 16, 30, 110
    size = (len(exhibits) * (side + gap) + gap, head + cells + 14 + side + gap)
    still = PILImage.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(still)
    columns = [side // exhibit.matrix.frames for exhibit in exhibits]
    for index, (exhibit, column) in enumerate(zip(exhibits, columns, strict=True)):
        left = gap + index * (side + gap)
        draw.text((left, 6), exhibit.title.partition(",")[0], INK, _font(16))
        heat = PILImage.fromarray(heat_map(exhibit.matrix, column, max(4, cells // exhibit.matrix.steps)))
        heat = heat.resize((column * exhibit.matrix.frames, cells), PILImage.Resampling.NEAREST)
        still.paste(heat, (left, head), heat)
    pictures = []
    for number in range(min(len(exhibit.frames) for exhibit in exhibits)):
        picture = still.copy()
        draw = ImageDraw.Draw(picture)
        for index, (exhibit, column) in enumerate(zip(exhibits, columns, strict=True)):
            left = gap + index * (side + gap)
            slot = next(s for s in range(exhibit.matrix.frames) if number in exhibit.slot_frames(s))
            draw.rectangle(
                (left + slot * column, head - 2, left + (slot + 1) * column, head + cells + 1), None, MARK, 2
            )
            picture.paste(_enlarged(exhibit.frames[number]), (left, head + cells + 14))
            if slot in exhibit.given:
                box = (left - 2, head + cells + 12, left + side + 1, head + cells + 15 + side)
                draw.rectangle(box, None, MARK, 3)
        pictures.append(picture.quantize(96, dither=PILImage.Dither.NONE))
    return pictures


def _spread(exhibit: Exhibit, columns: int) -> Picture:
    picked = np.linspace(0, len(exhibit.frames) - 1, columns).round().astype(int)
    spread: Picture = exhibit.frames[picked]
    return spread


def _enlarged(frame: Picture) -> PILImage.Image:
    height, width = frame.shape[:2]
    return PILImage.fromarray(frame).resize((width * ZOOM, height * ZOOM), PILImage.Resampling.NEAREST)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
