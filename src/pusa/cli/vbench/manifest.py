"""`pusa vbench manifest`: write the list of videos to make, from the official list."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pusa.cli.shared.arguments import number
from pusa.cli.shared.arguments import size as read_size
from pusa.cli.shared.options import File, Verbosity, Whole
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
    verbosity: Verbosity = Verbosity(),
) -> Report:
    """Write one line of JSON for each video of a suite: prompt, picture, sample, seed and file name.

    Parameters
    ----------
    info
        The official vbench2_i2v_full_info.json, which is part of the official code.
    out
        The manifest.
    suite
        full: 5,590 videos, the only suite with a total; core: 1,775 videos without camera motion; subset750: 750
        videos, like the paper's ablations; smoke: six videos.
    size
        WIDTHxHEIGHT of the videos. It determines which official crops are used.
    frames
        Pixel frames: 4n+1.
    fps
        Frame rate in the files. Dynamic degree depends on it.
    seed
        Seed of the run. The seed of a video is computed from it, the prompt and the sample.
    """
    from pusa.evaluation.vbench import manifest as manifests

    if frames < 5 or frames % 4 != 1:
        raise InputError(f"--frames {frames}: give 4n+1, such as 81.")
    if not 0 < number(str(fps), "--fps", "frame rate") <= 1000:
        raise InputError(f"--fps {fps:g}: give a rate above 0 and at most 1000.")
    made = manifests.build(info, suite, read_size(size), frames, fps, seed)
    if out.exists() and not _may_be_replaced(out):
        raise InputError(f"--out {out} exists and is not a manifest; give another name.")
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
