"""The page of the demo: one self-contained HTML file that plays every clip next to its timestep matrix.

The page contains each clip as a lossless strip of frames, not as a video. So its pixels are exactly those of the model,
and the page can mark the column of the matrix that belongs to the frame on screen.
"""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from pusa.media.images import Frames

if TYPE_CHECKING:
    from pusa.core.timesteps import TimestepMatrix


@dataclass(frozen=True)
class Given:
    """The input for one latent slot. frames: uint8 [n, H, W, 3]. caption: such as `frame 8, noise 0.3`."""

    frames: Frames
    caption: str


@dataclass(frozen=True)
class TaskResult:
    """One task of the demo: its input, its matrix and its clip.

    command: the command line. file: the name of the clip. seconds: the time that it took. frames: uint8 [F, H, W, 3].
    given: the input by column of the matrix. matrix, first_slot: the matrix begins at this latent slot of the clip; an
    extension samples only the new part and its overlap. truth: the frames that a perfect model makes, if they are
    known.
    """

    title: str
    explanation: str
    prompt: str
    command: str
    file: str
    seconds: float
    fps: float
    frames: Frames
    matrix: TimestepMatrix
    given: dict[int, Given] = field(default_factory=dict)
    first_slot: int = 0
    truth: Frames | None = None
    truth_caption: str = "truth"

    def slot_frames(self, slot: int) -> range:
        """Return the pixel frames of the clip for a column of the matrix. The first column is one frame."""
        last = 4 * (slot + self.first_slot)
        return range(last, last + 1) if slot == 0 else range(last - 3, last + 1)


def page(results: Sequence[TaskResult], notes: Sequence[str]) -> str:
    """Return the HTML of the page. notes: lines about the run, such as versions, device and time."""
    cards = "\n".join(_card(result) for result in results)
    lines = "".join(f"<li>{escape(note)}</li>" for note in notes)
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return template.replace("{{cards}}", cards).replace("{{facts}}", lines)


def _card(result: TaskResult) -> str:
    columns = result.matrix.frames
    given = "".join(
        f'<figure style="grid-column:{slot + 1}">{_strip(shown.frames, result.fps, "mini")}'
        f"<figcaption>{escape(shown.caption)}</figcaption></figure>"
        for slot, shown in sorted(result.given.items())
    )
    labels, made = "", ""
    for slot in range(columns):
        span = result.slot_frames(slot)
        labels += f"<span>{span[0]}{f'–{span[-1]}' if len(span) > 1 else ''}</span>"
        made += _strip(result.frames[span[0] : span[-1] + 1], result.fps, "mini")
    heat = _png(heat_map(result.matrix, 64, 16))
    clips = f"<figure>{_strip(result.frames, result.fps, 'clip main')}<figcaption>made</figcaption></figure>"
    if result.truth is not None:
        caption = escape(result.truth_caption)
        clips += f"<figure>{_strip(result.truth, result.fps, 'clip')}<figcaption>{caption}</figcaption></figure>"
    return f"""<article data-slots="{columns}" data-first="{result.first_slot}" style="--columns:{columns}">
<header><h2>{escape(result.title)}</h2><p class="why">{escape(result.explanation)}</p>
<p class="prompt">“{escape(result.prompt)}”</p></header>
<div class="work">
<div class="rows">
<span class="row">given</span><div class="grid given">{given or '<p class="nothing">only the prompt</p>'}</div>
<span class="row">noise<br>level<small>{result.matrix.steps} steps ↓</small></span>
<div class="heat"><img src="{heat}" alt="timestep matrix: {result.matrix.steps} steps by {columns} latent frames">
<i></i></div>
<span class="row">frames</span><div class="grid labels">{labels}</div>
<span class="row">made</span><div class="grid made">{made}</div>
</div>
<div class="clips">{clips}</div>
</div>
<footer><code>{_command(result.command)}</code><a href="{escape(result.file)}">{escape(result.file)}</a>
<span>{result.seconds:.1f} s</span></footer>
</article>"""


def _command(line: str) -> str:
    """Return the HTML of a command line that breaks only between its words."""
    words = (shlex.quote(word).replace("'", '"') for word in shlex.split(line))
    return " ".join(f"<span>{escape(word)}</span>" for word in words)


def heat_map(matrix: TimestepMatrix, width: int, height: int, gap: int = 2) -> NDArray[np.uint8]:
    """Return the matrix as RGBA, uint8 [S * height, F * width, 4].

    width, height: of a cell in pixels, including its gap. gap: the transparent pixels between two cells.
    """
    cell = 32
    cells = matrix.image(cell).numpy().reshape(matrix.steps, cell, matrix.frames, cell, 3)
    rows, columns = (np.linspace(0, cell - 2, side - gap).round().astype(int) for side in (height, width))
    picture = np.zeros((matrix.steps, height, matrix.frames, width, 4), np.uint8)
    picture[:, : height - gap, :, : width - gap, :3] = cells[:, rows][:, :, :, columns]
    picture[:, : height - gap, :, : width - gap, 3] = 255
    return picture.reshape(matrix.steps * height, matrix.frames * width, 4)


def _strip(frames: Frames, fps: float, kind: str) -> str:
    count, height, width, _ = frames.shape
    film = frames.transpose(1, 0, 2, 3).reshape(height, count * width, 3)
    return (
        f'<div class="film {kind}" data-count="{count}" data-fps="{fps:g}" '
        f"style=\"aspect-ratio:{width}/{height};--count:{count};background-image:url('{_png(film)}')\"></div>"
    )


def _png(pixels: Frames) -> str:
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, "png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
