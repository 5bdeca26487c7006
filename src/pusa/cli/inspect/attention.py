"""`pusa inspect attention`: measure the self-attention between latent frames, by block and step."""

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
    Verbosity,
    Whole,
    model_default,
    values_of,
    with_preset,
)
from pusa.cli.shared.terminal import Report, Terminal
from pusa.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from pusa.evaluation.inspect.attention import Maps

WHERE = Group.create_ordered("Blocks and steps")


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
    frames: Annotated[int | None, Whole, Parameter(group=CLIP, show_default=model_default)] = None,
    size: Annotated[str | None, Parameter(group=CLIP, metavar="WxH", show_default=model_default)] = None,
    blocks: Annotated[tuple[int, ...], Many, Parameter(group=WHERE, metavar="BLOCK...", consume_multiple=True)] = (),
    at_steps: Annotated[tuple[int, ...], Many, Parameter(group=WHERE, metavar="STEP...", consume_multiple=True)] = (),
    per_head: Annotated[bool, Switch, Parameter(group=WHERE)] = False,
    sampling: Sampling = Sampling(),
    model: Model = Model(),
    out: Annotated[Path, File, Parameter(group=OUTPUT)] = Path("outputs/attention"),
    verbosity: Verbosity = Verbosity(),
) -> Report:
    """Make a clip and measure how much each latent frame attends to each other one.

    The values are exact means over tokens and heads. The clip is identical, bit for bit, to that of `pusa generate`.
    The command writes attention.png, attention.json and clip.mp4.

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
        Clip that fills the frames from FRAME on, as in pusa generate. Repeatable.
    noise
        Noise multiplier of every condition that is given without its own: 0 keeps it exactly, 1 ignores it.
    frames
        Length in frames: 4n+1.
    size
        Width and height in pixels, multiples of 16.
    blocks
        Blocks of the transformer, from 0. The default is the last.
    at_steps
        Sampling steps, from 0. The default is the first, the middle and the last one.
    per_head
        Report each head separately.
    out
        Folder for the results.
    """
    model, sampling, condition_noise = with_preset(model, sampling, noise)
    terminal = Terminal(verbosity.verbose)
    request = request_of(
        image=image,
        last_image=last_image,
        keyframe=keyframe,
        video=video,
        noise=condition_noise,
        options={
            **values_of(sampling),
            "prompt": prompt,
            "frames": frames,
            "size": None if size is None else read_size(size),
        },
    )
    if noise and not request.conditions:
        raise InputError(
            f"--noise {noise:g} applies to pictures and clips, and none is given; give one, or leave --noise out."
        )
    if any(value is not None for value in (sampling.accelerate, sampling.speed, sampling.min_psnr)):
        raise InputError(
            "An acceleration leaves attention out, so that it cannot be recorded: leave --accelerate, --speed and "
            "--min-psnr out."
        )
    if frames == 1:
        raise InputError("A clip of one frame has no attention between frames; give --frames 5 or more.")
    with terminal.status("Starting"):
        from pusa.cli.shared.clip_jobs import limits_of, open_pipeline, opened
        from pusa.errors import needing
        from pusa.evaluation.inspect import attention as recorder
        from pusa.files import check_writable, make_folder, write_json

        with needing("eval"):
            from pusa.evaluation import plots
    request = opened(request, terminal)
    settings = request.check(limits_of(model, terminal))
    pipe = open_pipeline(
        model,
        terminal,
        size=request.size,
        frames=frames,
        sampling=settings,
    )
    steps = _steps(at_steps, settings.steps)
    chosen = tuple(dict.fromkeys(blocks)) or (len(pipe.backbone.blocks(pipe.transformer)) - 1,)
    transformers = [one for one in (pipe.transformer, pipe.transformer_2) if one is not None]
    passes = dict(zip(transformers, settings.calls, strict=True))
    with (
        recorder.recording(passes, chosen, steps, partial(recorder.between_frames, per_head=per_head)) as maps,
        terminal.steps("Sampling") as callback,
    ):
        make_folder(out, "the results")
        check_writable(out / "attention.json")
        clip = request.run(pipe, callback)
    clip.save(out / "clip.mp4")
    record = {"clip": str(out / "clip.mp4"), "prompt": prompt, "seed": request.seed, "steps": settings.steps}
    record["maps"] = [_record(place, attention_map) for place, attention_map in sorted(maps.items())]
    picture = plots.heat(
        out / "attention.png",
        _panels(maps, chosen, steps),
        label="share of attention",
        xlabel="to latent frame",
        ylabel="from",
    )
    files = [str(picture), str(out / "attention.json"), str(out / "clip.mp4")]
    write_json(out / "attention.json", record)
    uniform = 100 / next(iter(maps.values())).shape[-1]
    shares = {
        f"to frame 0 (uniform: {uniform:.0f})": recorder.first_frame_share,
        "to themselves": recorder.own_frame_share,
    }
    text = [f"Attention of the latent frames after frame 0, %\n{_table(maps, chosen, steps, shares)}\n", *files]
    return Report(record | {"files": files}, "\n".join(text), [clip])


def _steps(at_steps: Sequence[int], count: int) -> tuple[int, ...]:
    if outside := [step for step in at_steps if not 0 <= step < count]:
        raise InputError(f"--at-steps {outside[0]}: there are {count} steps; give 0 to {count - 1}.")
    return tuple(dict.fromkeys(at_steps or (0, (count - 1) // 2, count - 1)))


def _record(place: tuple[int, int], attention_map: Tensor) -> dict[str, Any]:
    """Return a map as JSON: the mean over heads, and each head if the heads are separate.

    place: step and block. attention_map: [F, F], or [heads, F, F].
    """
    from pusa.evaluation.inspect.attention import first_frame_share, own_frame_share

    step, block = place
    mean = attention_map.mean(dim=0) if attention_map.ndim == 3 else attention_map
    return {
        "step": step,
        "block": block,
        "first_frame_share": first_frame_share(mean),
        "own_frame_share": own_frame_share(mean),
        "attention": mean.tolist(),
        **({"heads": attention_map.tolist()} if attention_map.ndim == 3 else {}),
    }


def _panels(maps: Maps, blocks: Sequence[int], steps: Sequence[int]) -> dict[tuple[str, str], Tensor]:
    """Return the panels of the picture by (row, column). A row is a block, or one head of it; a column is a step."""
    panels: dict[tuple[str, str], Tensor] = {}
    for block in blocks:
        for step in steps:
            attention_map = maps[step, block]
            heads = attention_map if attention_map.ndim == 3 else attention_map[None]
            for number, head in enumerate(heads):
                row = f"block {block}" + (f", head {number}" if attention_map.ndim == 3 else "")
                panels[row, f"step {step}"] = head
    return panels


def _table(
    maps: Maps, blocks: Sequence[int], steps: Sequence[int], shares: Mapping[str, Callable[[Tensor], float]]
) -> str:
    """Return, for each share, a table in percent with a line for each block and a column for each step."""
    rows = []
    for title, share in shares.items():
        rows.append([title, *(f"step {step}" for step in steps)])
        rows += [[f"block {b}", *(f"{100 * share(maps[s, b]):.1f}" for s in steps)] for b in blocks]
    width = max(len(row[0]) for row in rows)
    return "\n".join(row[0].ljust(width) + "".join(cell.rjust(10) for cell in row[1:]) for row in rows)
