"""`pusa vbench manifest`: the official list as a file of what is to be made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pusa.cli.shared.arguments import number
from pusa.cli.shared.arguments import size as read_size
from pusa.cli.shared.options import File, Talk, Whole
from pusa.cli.shared.terminal import Report, count
from pusa.errors import InputError


def manifest(
    info: Annotated[Path, File],
    *,
    out: Annotated[Path, File] = Path("vbench.jsonl"),
    suite: Literal["full", "core", "subset750", "smoke"] = "full",
    size: str = "832x480",
    frames: Annotated[int, Whole] = 81,
    fps: float = 16,
    seed: Annotated[int, Whole] = 0,
    talk: Talk = Talk(),
) -> Report:
    """Write one JSON line for each video of a suite: prompt, picture, sample, seed, file name.

    Parameters
    ----------
    info
        The official vbench2_i2v_full_info.json, which comes with the official code.
    out
        The manifest.
    suite
        full: 5,590 videos, the only one with a total; core: 1,775 without camera motion; subset750: as many as the
        paper's ablations; smoke: six.
    size
        WIDTHxHEIGHT of the videos; it decides which of the official crops is used.
    frames
        Pixel frames, 4n+1.
    fps
        Frame rate that the files are tagged with; dynamic degree depends on it.
    seed
        Of the run; a video's own seed follows from it, the prompt and the sample.
    """
    from pusa.evaluation.vbench import manifest as manifests

    if frames < 5 or frames % 4 != 1:
        raise InputError(f"--frames {frames}: give 4n+1, such as 81.")
    if not 0 < number(str(fps), "--fps", "frame rate") <= 1000:
        raise InputError(f"--fps {fps:g}: give a rate above 0 and at most 1000.")
    made = manifests.build(info, suite, read_size(size), frames, fps, seed)
    if out.exists() and not _may_be_replaced(out):
        raise InputError(f"--out {out}: this file is there and is no manifest; give another name.")
    made.write(out)
    images = len({video.image for video in made.videos})
    record = {"manifest": str(out), "suite": suite, "videos": len(made.videos), "images": images, "crop": made.crop}
    text = f"{out}: {count(len(made.videos), 'video')} of {images} pictures, crop {made.crop}"
    return Report(record, text)


def _may_be_replaced(path: Path) -> bool:
    from pusa.evaluation.vbench import manifest as manifests

    try:
        manifests.read(path)
    except InputError:
        return False
    return True
