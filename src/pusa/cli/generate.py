"""`pusa generate`: a clip from a prompt and whatever pictures and clips are given for some of its frames."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from pusa.cli.options import CLIP, CONDITIONS, OFFICIAL, Many, Model, Output, Sampling
from pusa.cli.terminal import Report


def generate(
    prompt: str = "",
    *,
    image: Annotated[str | None, Parameter(group=CONDITIONS, metavar="PATH")] = None,
    last_image: Annotated[str | None, Parameter(group=CONDITIONS, metavar="PATH")] = None,
    keyframe: Annotated[tuple[str, ...], Many, Parameter(group=CONDITIONS, metavar="PATH@FRAME[,noise=M]")] = (),
    video: Annotated[
        tuple[str, ...], Many, Parameter(group=CONDITIONS, metavar="PATH[@FRAME][,frames=A:B][,noise=M]")
    ] = (),
    edit: Annotated[str | None, Parameter(group=CONDITIONS, metavar="PATH")] = None,
    strength: Annotated[float, Parameter(group=CONDITIONS)] = 0.6,
    noise: Annotated[float, Parameter(group=CONDITIONS)] = 0.0,
    frames: Annotated[int | None, Parameter(group=CLIP, show_default=lambda _: "the model's own")] = None,
    size: Annotated[str | None, Parameter(group=CLIP, metavar="WxH", show_default=lambda _: "the model's own")] = None,
    fit: Annotated[Literal["crop", "pad", "stretch"], Parameter(group=CLIP)] = "crop",
    count: Annotated[int, Parameter(group=CLIP)] = 1,
    from_: Annotated[Path | None, Parameter(name="--from", group=CLIP, metavar="CLIP.json")] = None,
    sampling: Sampling = Sampling(),
    model: Model = Model(),
    output: Output = Output(),
    image_paths: Annotated[
        tuple[str, ...], Many, Parameter(group=OFFICIAL, metavar="PATH...", consume_multiple=True)
    ] = (),
    cond_position: Annotated[str | None, Parameter(group=OFFICIAL, metavar="0,20")] = None,
    noise_multipliers: Annotated[str | None, Parameter(group=OFFICIAL, metavar="0.2,0.5")] = None,
) -> Report:
    """Make a clip from a prompt and from pictures or clips at any frames.

    A FRAME is a pixel frame (0 is the first, -1 the last) or a time such as 1.5s.

    Parameters
    ----------
    prompt
        What the clip shows.
    image
        Picture for the first frame.
    last_image
        Picture for the last frame.
    keyframe
        Picture for any frame, for example `cat.png@8,noise=0.2`. Repeatable.
    video
        Clip that is kept from FRAME on (0 if not given); with a negative FRAME it ends there, so `@-1` ends with the
        last frame. `frames=0:9` uses its first nine frames, `frames=-8:` its last eight. Repeatable.
    edit
        Clip to change: its motion stays, the prompt repaints it.
    strength
        How much of --edit may change: 0 nothing, 1 everything.
    noise
        Noise multiplier of every condition that names none: 0 keeps it exactly, 1 ignores it.
    frames
        Length in frames: 4n+1.
    size
        Width and height in pixels, multiples of 16.
    fit
        How pictures of another shape are brought to the size.
    count
        Number of clips, with consecutive seeds.
    from_
        Remake the clip that this sidecar describes.
    image_paths
        Pictures, in the order of --cond-position.
    cond_position
        Latent frame of each picture.
    noise_multipliers
        Noise multiplier of each picture.
    """
    raise NotImplementedError
