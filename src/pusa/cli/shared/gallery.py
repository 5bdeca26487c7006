"""Look at what a command made: a page and a contact sheet of several clips, and `--open`."""

from __future__ import annotations

import os
import sys
import webbrowser
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from pusa.cli.shared.terminal import Terminal, printable
from pusa.errors import STOPS, sentence
from pusa.files import write_text_atomic

if TYPE_CHECKING:
    from pusa.media.images import Frames

MARK = '<meta name="generator" content="pusa">'
"""In every page. A file without it belongs to somebody else and is not replaced."""
COLUMNS, MOST = 5, 40
"""Frames of each clip on a contact sheet, and clips on it; the page has all clips."""
WIDEST = 192
"""pixels of a frame on a contact sheet"""
STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem; background: #faf8f4; color: #222 }
main { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)) }
figure { margin: 0 } video, img { width: 100%; background: #ddd } code { font-size: 12px; overflow-wrap: anywhere }
"""


@dataclass(frozen=True)
class Shown:
    """A clip on a page. path: its file, or the folder of its frames."""

    path: Path
    prompt: str
    seed: int
    sidecar: Path


def write_page(page: Path, clips: Sequence[Shown], frames: Iterable[Frames], terminal: Terminal) -> dict[str, str]:
    """Write a page of the clips, and beside it the contact sheet; return their paths by kind.

    frames: those of the clips, uint8 [N, H, W, 3] each, or of the first of them. If files of somebody else have these
    names, or if writing fails, a note says so. The clips are saved already, so that this is no failure of the command.
    """
    try:
        return _written(page, clips, frames, terminal)
    except STOPS:
        raise
    except Exception as error:
        terminal.note(f"The page of all clips was not written: {sentence(error)}")
        return {}


def _written(page: Path, clips: Sequence[Shown], frames: Iterable[Frames], terminal: Terminal) -> dict[str, str]:
    from pusa.media.images import write_image

    sheet = page.with_suffix(".png")
    if any(path.exists() for path in (page, sheet)) and not _is_ours(page):
        terminal.note(f"{page} or {sheet.name} exists and is no page of pusa, so no page was written.")
        return {}
    write_image(sheet, _contact_sheet([printable(clip.path.stem) for clip in clips], list(frames)))
    figures = "\n".join(_figure(clip, page.parent) for clip in clips)
    title = escape(f"{len(clips)} clips")
    write_text_atomic(
        page,
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{MARK}\n<title>{title}</title>\n'
        f"<style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n<main>\n{figures}\n</main>\n"
        f'<p><a href="{quote(os.fsencode(sheet.name))}">Contact sheet</a></p></body></html>\n',
    )
    terminal.note(f"Page of all clips: {page}")
    return {"page": str(page), "sheet": str(sheet)}


def write_page_of_files(page: Path, clips: Sequence[Shown], terminal: Terminal) -> dict[str, str]:
    """`write_page` for clips on the disk, which are read for the contact sheet."""
    from pusa.media.videos import read_video

    return write_page(page, clips, (read_video(clip.path)[0] for clip in clips[:MOST]), terminal)


def show(path: Path, terminal: Terminal) -> None:
    """Open a file in the browser, or say why it cannot be opened here."""
    if not _has_display():
        terminal.note(f"There is no display here, so --open cannot show {path}; open it on a machine that has one.")
        return
    try:
        opened = webbrowser.open(path.resolve().as_uri())
    except webbrowser.Error:
        opened = False
    if not opened:
        terminal.note(f"No program could be started to show {path}; open it yourself.")


def _has_display() -> bool:
    if sys.platform in ("darwin", "win32"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME"))


def _is_ours(page: Path) -> bool:
    try:
        return MARK in page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def _figure(clip: Shown, folder: Path) -> str:
    source = quote(os.fsencode(os.path.relpath(clip.path, folder)))
    if clip.path.is_dir():
        source += "/0000.png"
    medium = f'<video src="{source}" autoplay muted loop controls></video>'
    if not source.endswith(".mp4"):
        medium = f'<img src="{source}" alt="">'
    command = f"pusa generate --from {os.path.relpath(clip.sidecar, folder)}"
    return (
        f"<figure>{medium}<figcaption>{escape(clip.prompt)}<br>seed {clip.seed}<br>"
        f"<code>{escape(command)}</code></figcaption></figure>"
    )


def _contact_sheet(names: Sequence[str], clips: Sequence[Frames]) -> Frames:
    """A row for each clip: its name, and frames from the first to the last. uint8 [H, W, 3]."""
    import numpy as np

    from pusa.media.images import contact_sheet, fit

    clips = clips[:MOST]
    height, width = clips[0].shape[1:3]
    size = min(width, WIDEST), max(1, round(height * min(width, WIDEST) / width))
    pictures, labels = [], []
    for name, frames in zip(names, clips, strict=False):
        columns = np.linspace(0, len(frames) - 1, COLUMNS).round().astype(int)
        pictures += list(fit(frames[columns], size, "pad"))
        labels += [name, *[""] * (COLUMNS - 1)]
    return contact_sheet(pictures, COLUMNS, labels)
