"""`pusa inspect attention`: the self-attention between latent frames, by block and step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from pusa.cli.options import CONDITIONS, OUTPUT, File, Many, Model, Sampling, Talk, Whole, with_preset
from pusa.cli.terminal import Report, Terminal
from pusa.errors import InputError

WHERE = Group.create_ordered("Where")


def attention(
    prompt: str,
    *,
    image: Annotated[str | None, Parameter(group=CONDITIONS, metavar="PATH")] = None,
    last_image: Annotated[str | None, Parameter(group=CONDITIONS, metavar="PATH")] = None,
    keyframe: Annotated[tuple[str, ...], Many, Parameter(group=CONDITIONS, metavar="PATH@FRAME")] = (),
    noise: Annotated[float | None, Parameter(group=CONDITIONS, show_default=lambda _: "0")] = None,
    frames: Annotated[int | None, Whole] = None,
    size: str | None = None,
    blocks: Annotated[tuple[int, ...], Many, Parameter(group=WHERE, metavar="BLOCK...", consume_multiple=True)] = (),
    at_steps: Annotated[tuple[int, ...], Many, Parameter(group=WHERE, metavar="STEP...", consume_multiple=True)] = (),
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
        What to show.
    image
        A picture for the first frame.
    last_image
        A picture for the last frame.
    keyframe
        A picture for any frame. Repeatable.
    noise
        Noise multiplier of every picture.
    frames
        Pixel frames, 4n+1; by default the model's own.
    size
        WIDTHxHEIGHT; by default the model's own.
    blocks
        Blocks of the transformer, from 0; by default the last.
    at_steps
        Sampling steps, from 0; by default the first, one in the middle and the last.
    out
        Folder for the results.
    """
    model, sampling, held = with_preset(model, sampling, noise)
    terminal = Terminal(talk.talkative)
    from pusa.cli.request import Request

    request = Request.of(
        prompt=prompt,
        image=image,
        last_image=last_image,
        keyframe=keyframe,
        video=(),
        edit=None,
        strength=None,
        noise=held,
        frames=frames,
        size=size,
        fit="crop",
        sampling=sampling,
    )
    from pusa.cli.making import check, open_pipeline

    check(terminal, frames=frames, pictures=request.pictures)
    pipe = open_pipeline(model, terminal, size=request.shape, frames=frames, guidance=sampling.guidance)
    if pipe.transformer_2 is not None:
        raise InputError("A model with two experts cannot be looked into yet; give one of them as --model.")
    from pusa.errors import needing
    from pusa.evaluation import attention as inside
    from pusa.files import write_json

    with needing("eval"):
        from pusa.evaluation import plots

    _, job = request.job(pipe)
    decided = pipe.settings(**{k: v for k, v in sampling.arguments().items() if k in ("steps", "guidance")})
    count = decided.steps
    steps = at_steps or tuple(dict.fromkeys((0, (count - 1) // 2, count - 1)))
    if odd := [step for step in steps if not 0 <= step < count]:
        raise InputError(f"--at-steps {odd[0]}: there are {count} steps, 0 to {count - 1}.")
    chosen = blocks or (len(pipe.transformer.blocks) - 1,)
    passes = 1 if decided.guidance == 1 else 2
    with (
        inside.recording({pipe.transformer: passes}, chosen, steps) as maps,
        terminal.steps("Sampling") as callback,
    ):
        clip = job(sampling.seed, callback)
    out.mkdir(parents=True, exist_ok=True)
    clip.save(out / "clip.mp4")
    shares = {f"block {block}, step {step}": inside.first_frame_share(values) for (step, block), values in maps.items()}
    record = {
        "clip": str(out / "clip.mp4"),
        "maps": [{"step": s, "block": b, "attention": values.tolist()} for (s, b), values in sorted(maps.items())],
        "first_frame_share": shares,
    }
    write_json(out / "attention.json", record)
    picture = plots.heat(
        out / "attention.png",
        {(f"block {block}", f"step {step}"): maps[step, block] for block in chosen for step in steps},
        label="share of attention",
        xlabel="to latent frame",
        ylabel="from",
    )
    lines = [
        f"{place}: {100 * share:.1f} % of the later frames' attention to frame 0" for place, share in shares.items()
    ]
    return Report(record, "\n".join([*lines, str(picture), str(out / "attention.json"), str(out / "clip.mp4")]))
