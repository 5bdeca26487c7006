"""The demo's page: one self-contained HTML file in which every clip plays beside the timestep matrix that made it.

Clips travel inside the page as lossless film strips rather than as video, so that the pixels are exactly the model's
and the column of the matrix that belongs to the frame on screen can be marked while it plays.
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

from pusa.images import Frames

if TYPE_CHECKING:
    from pusa.core.timesteps import TimestepMatrix


@dataclass(frozen=True)
class Given:
    """What the user gave for one latent slot: its frames [n, H, W, 3] and a caption such as `frame 8, noise 0.3`."""

    frames: Frames
    caption: str


@dataclass(frozen=True)
class Exhibit:
    """One task of the demo: what was given, the matrix, and what came out.

    `matrix` covers the clip's latent slots from `first_slot` on: an extension samples only the new part and its
    overlap. `truth`, where the world knows it, has the frames that a perfect model would have made.
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
        """The clip's pixel frames of a column of the matrix; the first column stands for one frame."""
        last = 4 * (slot + self.first_slot)
        return range(last, last + 1) if slot == 0 else range(last - 3, last + 1)


def page(exhibits: Sequence[Exhibit], facts: Sequence[str]) -> str:
    """The whole page; `facts` are lines about the run (versions, device, time)."""
    cards = "\n".join(_card(exhibit) for exhibit in exhibits)
    lines = "".join(f"<li>{escape(fact)}</li>" for fact in facts)
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return template.replace("{{cards}}", cards).replace("{{facts}}", lines)


def _card(exhibit: Exhibit) -> str:
    columns = exhibit.matrix.frames
    given = "".join(
        f'<figure style="grid-column:{slot + 1}">{_strip(shown.frames, exhibit.fps, "mini")}'
        f"<figcaption>{escape(shown.caption)}</figcaption></figure>"
        for slot, shown in sorted(exhibit.given.items())
    )
    labels, made = "", ""
    for slot in range(columns):
        span = exhibit.slot_frames(slot)
        labels += f"<span>{span[0]}{f'–{span[-1]}' if len(span) > 1 else ''}</span>"
        made += _strip(exhibit.frames[span[0] : span[-1] + 1], exhibit.fps, "mini")
    heat = _png(heat_map(exhibit.matrix, 64, 16))
    clips = f"<figure>{_strip(exhibit.frames, exhibit.fps, 'clip main')}<figcaption>made</figcaption></figure>"
    if exhibit.truth is not None:
        caption = escape(exhibit.truth_caption)
        clips += f"<figure>{_strip(exhibit.truth, exhibit.fps, 'clip')}<figcaption>{caption}</figcaption></figure>"
    return f"""<article data-slots="{columns}" data-first="{exhibit.first_slot}" style="--columns:{columns}">
<header><h2>{escape(exhibit.title)}</h2><p class="why">{escape(exhibit.explanation)}</p>
<p class="prompt">“{escape(exhibit.prompt)}”</p></header>
<div class="work">
<div class="rows">
<span class="row">given</span><div class="grid given">{given or '<p class="nothing">only the words</p>'}</div>
<span class="row">noise<br>level<small>{exhibit.matrix.steps} steps ↓</small></span>
<div class="heat"><img src="{heat}" alt="timestep matrix: {exhibit.matrix.steps} steps by {columns} latent frames">
<i></i></div>
<span class="row">frames</span><div class="grid labels">{labels}</div>
<span class="row">made</span><div class="grid made">{made}</div>
</div>
<div class="clips">{clips}</div>
</div>
<footer><code>{_command(exhibit.command)}</code><a href="{escape(exhibit.file)}">{escape(exhibit.file)}</a>
<span>{exhibit.seconds:.1f} s</span></footer>
</article>"""


def _command(line: str) -> str:
    """A command line that breaks only between its words."""
    words = (shlex.quote(word).replace("'", '"') for word in shlex.split(line))
    return " ".join(f"<span>{escape(word)}</span>" for word in words)


def heat_map(matrix: TimestepMatrix, width: int, height: int, gap: int = 2) -> NDArray[np.uint8]:
    """The matrix as RGBA, uint8 [S * height, F * width, 4]: the cells of `TimestepMatrix.image` on transparent gaps."""
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
