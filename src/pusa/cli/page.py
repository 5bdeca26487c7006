"""The demo's page: one self-contained HTML file in which every clip plays beside the timestep matrix that made it.

Clips travel inside the page as lossless film strips rather than as video, so that the pixels are exactly the model's
and the column of the matrix that belongs to the frame on screen can be marked while it plays.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

if TYPE_CHECKING:
    from pusa.core.timesteps import TimestepMatrix

Frames = NDArray[np.uint8]
"""[N, H, W, 3]"""


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
        """The clip's pixel frames of a column of the matrix."""
        slot += self.first_slot
        return range(1) if slot == 0 else range(4 * slot - 3, 4 * slot + 1)


def page(exhibits: Sequence[Exhibit], facts: Sequence[str]) -> str:
    """The whole page; `facts` are lines about the run (versions, device, time)."""
    cards = "\n".join(_card(exhibit) for exhibit in exhibits)
    lines = "".join(f"<li>{escape(fact)}</li>" for fact in facts)
    return TEMPLATE.replace("{{cards}}", cards).replace("{{facts}}", lines)


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
    heat = _png(exhibit.matrix.image(8).numpy())
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
<footer><code>{escape(exhibit.command)}</code><a href="{escape(exhibit.file)}">{escape(exhibit.file)}</a>
<span>{exhibit.seconds:.1f} s</span></footer>
</article>"""


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


TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Pusa: one timestep per frame</title>
<style>
:root { color-scheme: light dark; --ink: #1d1b18; --soft: #6d675e; --paper: #faf8f4; --card: #fff; --line: #e4dfd5;
  --mark: #c2410c; --cell: 64px }
@media (prefers-color-scheme: dark) { :root { --ink: #ece7de; --soft: #a1998c; --paper: #161412; --card: #1f1c19;
  --line: #38332d; --mark: #fb923c } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 ui-serif, "Iowan Old Style", Palatino,
  "Palatino Linotype", Georgia, "DejaVu Serif", serif; font-variant-numeric: oldstyle-nums; text-rendering: optimizeLegibility }
main { max-width: 1060px; margin: 0 auto; padding: 4rem 1.5rem 5rem }
h1 { font-size: 2.5rem; line-height: 1.1; font-weight: 500; letter-spacing: -.015em; margin: 0 0 1rem }
.lead { max-width: 40rem; font-size: 1.12rem; margin: 0 0 1rem }
.legend { display: flex; gap: .6rem; align-items: center; color: var(--soft); font-size: .85rem; margin: 1.4rem 0 2.6rem }
.legend i { width: 10rem; height: .7rem; border-radius: 2px; background: linear-gradient(90deg, #fcf2d4, #ed785c, #2b1957) }
article { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1.6rem 1.8rem 1.2rem; margin: 0 0 1.6rem }
h2 { font-size: 1.35rem; font-weight: 500; margin: 0 }
.why { color: var(--soft); margin: .15rem 0 0; max-width: 44rem }
.prompt { font-style: italic; margin: .5rem 0 1.3rem }
.work { display: flex; flex-wrap: wrap; gap: 1.6rem 3rem; align-items: center }
.rows { display: grid; grid-template-columns: 4.4rem auto; gap: .45rem .9rem; align-items: center }
.row { text-align: right; color: var(--soft); font-size: .82rem; line-height: 1.25 }
.row small { display: block; font-size: .72rem; opacity: .8 }
.grid { display: grid; grid-template-columns: repeat(var(--columns), var(--cell)); min-height: 1.2rem }
.grid figure, .clips figure { margin: 0 }
.given { align-items: end }
.given figcaption, .clips figcaption { color: var(--soft); font-size: .74rem; line-height: 1.2; text-align: center; margin-top: .25rem }
.nothing { grid-column: 1 / -1; margin: 0; color: var(--soft); font-size: .82rem; font-style: italic }
.labels span { text-align: center; font-size: .74rem; color: var(--soft); font-variant-numeric: lining-nums tabular-nums }
.labels span.now { color: var(--mark); font-weight: 600 }
.heat { position: relative; width: calc(var(--columns) * var(--cell)) }
.heat img { display: block; width: 100%; height: 152px; image-rendering: pixelated; border-radius: 3px }
.heat i { position: absolute; top: -3px; bottom: -3px; width: var(--cell); border: 2px solid var(--mark); border-radius: 4px; pointer-events: none }
.film { background-size: calc(var(--count) * 100%) 100%; background-repeat: no-repeat; image-rendering: pixelated }
.mini { width: calc(var(--cell) - 8px); margin: 0 auto; border-radius: 3px }
.clips { display: flex; gap: 1rem }
.clip { width: 192px; border-radius: 5px }
article footer { display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; align-items: baseline; border-top: 1px solid var(--line);
  margin-top: 1.4rem; padding-top: .8rem; font-size: .82rem; color: var(--soft) }
code { font: .78rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-variant-numeric: normal }
footer code { flex: 1 1 30rem; user-select: all; overflow-wrap: anywhere; color: var(--ink) }
a { color: inherit; text-underline-offset: .2em }
.facts { color: var(--soft); font-size: .85rem; list-style: none; padding: 0; margin: 2.4rem 0 0 }
button { font: inherit; font-size: .85rem; color: inherit; background: none; border: 1px solid var(--line); border-radius: 5px; padding: .1rem .7rem; margin-left: auto; cursor: pointer }
@media (max-width: 640px) { :root { --cell: 46px } main { padding: 2rem .8rem } article { padding: 1.1rem 1rem } .clip { width: 132px }
  .rows { grid-template-columns: 3rem auto } .work { gap: 1.2rem } }
</style>
<main>
<h1>One timestep per frame</h1>
<p class="lead">A video diffusion model usually gets one timestep for the whole clip. Here every latent frame has its own, and all
of the tasks below are the same call of the same model with a different matrix of noise levels.</p>
<p class="lead">Read each card from top to bottom: what was given stands above its column, the column shows how noisy that latent
frame is at each sampling step, and below it are the pixel frames that came out.</p>
<p class="legend">clean <i></i> noise <button type="button" id="play">pause</button></p>
{{cards}}
<ul class="facts">{{facts}}</ul>
</main>
<script>
const films = [...document.querySelectorAll('.film')], cards = [...document.querySelectorAll('article')];
const button = document.getElementById('play');
let playing = !matchMedia('(prefers-reduced-motion: reduce)').matches, clock = 0, last = performance.now();
function show(film, frame) {
  const count = +film.dataset.count;
  film.style.backgroundPositionX = count > 1 ? 100 * (frame % count) / (count - 1) + '%' : '0';
}
function draw() {
  for (const film of films) show(film, Math.floor(clock * film.dataset.fps));
  for (const card of cards) {
    const film = card.querySelector('.main'), frame = Math.floor(clock * film.dataset.fps) % film.dataset.count;
    const column = Math.ceil(frame / 4) - card.dataset.first, mark = card.querySelector('.heat i');
    mark.hidden = column < 0 || column >= card.dataset.slots;
    mark.style.left = 100 * column / card.dataset.slots + '%';
    card.querySelectorAll('.labels span').forEach((label, i) => label.classList.toggle('now', i === column));
  }
}
function tick(now) {
  if (playing) { clock += (now - last) / 1000; draw(); }
  last = now;
  requestAnimationFrame(tick);
}
function label() { button.textContent = playing ? 'pause' : 'play'; }
button.onclick = () => { playing = !playing; label(); };
label(); draw(); requestAnimationFrame(tick);
</script>
</html>
"""
