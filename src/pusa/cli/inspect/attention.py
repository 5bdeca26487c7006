"""`pusa inspect attention`: the self-attention between latent frames, by block and step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from pusa.cli.shared.arguments import size as read_size
from pusa.cli.shared.flags import request_of
from pusa.cli.shared.options import (
    CLIP,
    CONDITIONS,
    OUTPUT,
    File,
    Many,
    Model,
    Sampling,
    Switch,
    Talk,
    Whole,
    of_model,
    values_of,
    with_preset,
)
from pusa.cli.shared.terminal import Report, Terminal
from pusa.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from pusa.evaluation.inspect.attention import Maps

WHERE = Group.create_ordered("Where")


def attention(
    prompt: str,
    *,
    image: Annotated[str | None, Parameter(group=CONDITIONS, metavar="PATH")] = None,
    last_image: Annotated[str | None, Parameter(group=CONDITIONS, metavar="PATH")] = None,
    keyframe: Annotated[tuple[str, ...], Many, Parameter(group=CONDITIONS, metavar="PATH@FRAME[,noise=M]")] = (),
    video: Annotated[
        tuple[str, ...], Many, Parameter(group=CONDITIONS, metavar="PATH@FRAME[,frames=N][,start=S][,noise=M]")
    ] = (),
    noise: Annotated[float | None, Parameter(group=CONDITIONS, show_default=lambda _: "0")] = None,
    frames: Annotated[int | None, Whole, Parameter(group=CLIP, show_default=of_model)] = None,
    size: Annotated[str | None, Parameter(group=CLIP, metavar="WxH", show_default=of_model)] = None,
    blocks: Annotated[tuple[int, ...], Many, Parameter(group=WHERE, metavar="BLOCK...", consume_multiple=True)] = (),
    at_steps: Annotated[tuple[int, ...], Many, Parameter(group=WHERE, metavar="STEP...", consume_multiple=True)] = (),
    per_head: Annotated[bool, Switch, Parameter(group=WHERE)] = False,
    sampling: Sampling = Sampling(),
    model: Model = Model(),
    out: Annotated[Path, File, Parameter(group=OUTPUT)] = Path("outputs/attention"),
    talk: Talk = Talk(),
) -> Report:
    """Make a clip and note how much every latent frame attends to every other: exact means over tokens and heads.

    The clip is the one that `pusa generate` makes, bit for bit. attention.png, attention.json and clip.mp4 are written.

    Parameters
    ----------
    prompt
        What the clip shows.
    image
        Picture for the first frame.
    last_image
        Picture for the last frame.
    keyframe
        Picture for any frame, for example cat.png@8,noise=0.2. Repeatable.
    video
        Clip that is kept from FRAME on, as in pusa generate. Repeatable.
    noise
        Noise multiplier of every condition that names none: 0 keeps it exactly, 1 ignores it.
    frames
        Length in frames: 4n+1.
    size
        Width and height in pixels, multiples of 16.
    blocks
        Blocks of the transformer, from 0; by default the last.
    at_steps
        Sampling steps, from 0; by default the first, one in the middle and the last.
    per_head
        Keep the heads apart.
    out
        Folder for the results.
    """
    model, sampling, held = with_preset(model, sampling, noise)
    terminal = Terminal(talk.talkative)
    request = request_of(
        image=image,
        last_image=last_image,
        keyframe=keyframe,
        video=video,
        noise=held,
        options={
            **values_of(sampling),
            "prompt": prompt,
            "frames": frames,
            "size": None if size is None else read_size(size),
        },
    )
    if noise and not request.conditions:
        raise InputError(f"--noise {noise:g} says how firmly pictures and clips are held and none is given.")
    if frames == 1:
        raise InputError("A clip of one frame has no attention between frames; give --frames 5 or more.")
    with terminal.status("Starting"):
        from pusa.cli.shared.clip_jobs import limits_of, open_pipeline, opened
        from pusa.errors import needing
        from pusa.evaluation.inspect import attention as inside
        from pusa.files import check_writable, make_folder, write_json

        with needing("eval"):
            from pusa.evaluation import plots
    request = opened(request, terminal)
    decided = request.check(limits_of(model, terminal))
    pipe = open_pipeline(model, terminal, size=request.size, frames=frames, guidance=request.guidance)
    steps = _steps(at_steps, decided.steps)
    chosen = tuple(dict.fromkeys(blocks)) or (len(pipe.backbone.blocks(pipe.transformer)) - 1,)
    transformers = [one for one in (pipe.transformer, pipe.transformer_2) if one is not None]
    passes = dict(zip(transformers, decided.calls, strict=True))
    with (
        inside.recording(passes, chosen, steps, partial(inside.between_frames, per_head=per_head)) as maps,
        terminal.steps("Sampling") as callback,
    ):
        make_folder(out, "the results")
        check_writable(out / "attention.json")
        clip = request.run(pipe, callback)
    clip.save(out / "clip.mp4")
    record = {"clip": str(out / "clip.mp4"), "prompt": prompt, "seed": request.seed, "steps": decided.steps}
    record["maps"] = [_record(place, found) for place, found in sorted(maps.items())]
    picture = plots.heat(
        out / "attention.png",
        _shown(maps, chosen, steps),
        label="share of attention",
        xlabel="to latent frame",
        ylabel="from",
    )
    files = [str(picture), str(out / "attention.json"), str(out / "clip.mp4")]
    write_json(out / "attention.json", record)
    even = 100 / next(iter(maps.values())).shape[-1]
    shares = {f"to frame 0 (even: {even:.0f})": inside.first_frame_share, "to themselves": inside.own_frame_share}
    text = [f"Attention of the later latent frames, %\n{_table(maps, chosen, steps, shares)}\n", *files]
    return Report(record | {"files": files}, "\n".join(text), [clip])


def _steps(asked: Sequence[int], count: int) -> tuple[int, ...]:
    if odd := [step for step in asked if not 0 <= step < count]:
        raise InputError(f"--at-steps {odd[0]}: there are {count} steps, 0 to {count - 1}.")
    return tuple(dict.fromkeys(asked or (0, (count - 1) // 2, count - 1)))


def _record(place: tuple[int, int], found: Tensor) -> dict[str, Any]:
    """A map as JSON: the mean over heads, and the heads where they were kept apart."""
    from pusa.evaluation.inspect.attention import first_frame_share, own_frame_share

    step, block = place
    mean = found.mean(dim=0) if found.ndim == 3 else found
    return {
        "step": step,
        "block": block,
        "first_frame_share": first_frame_share(mean),
        "own_frame_share": own_frame_share(mean),
        "attention": mean.tolist(),
        **({"heads": found.tolist()} if found.ndim == 3 else {}),
    }


def _shown(maps: Maps, blocks: Sequence[int], steps: Sequence[int]) -> dict[tuple[str, str], Tensor]:
    """What is drawn, by row and column: a row for each block, or for each of its heads."""
    shown: dict[tuple[str, str], Tensor] = {}
    for block in blocks:
        for step in steps:
            found = maps[step, block]
            for head, one in enumerate(found if found.ndim == 3 else found[None]):
                row = f"block {block}" + (f", head {head}" if found.ndim == 3 else "")
                shown[row, f"step {step}"] = one
    return shown


def _table(
    maps: Maps, blocks: Sequence[int], steps: Sequence[int], shares: Mapping[str, Callable[[Tensor], float]]
) -> str:
    """For each share a line for each block and a column for each step, in percent."""
    rows = []
    for title, share in shares.items():
        rows.append([title, *(f"step {step}" for step in steps)])
        rows += [[f"block {b}", *(f"{100 * share(maps[s, b]):.1f}" for s in steps)] for b in blocks]
    wide = max(len(row[0]) for row in rows)
    return "\n".join(row[0].ljust(wide) + "".join(cell.rjust(10) for cell in row[1:]) for row in rows)
