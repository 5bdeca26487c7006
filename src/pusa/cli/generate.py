"""`pusa generate`: make a clip from a prompt and from pictures or clips for any of its frames."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from pusa.cli.shared.arguments import default_name
from pusa.cli.shared.arguments import size as read_size
from pusa.cli.shared.clip_jobs import (
    bytes_of,
    check_output,
    check_paths,
    check_rate,
    check_shares,
    limits_of,
    make,
    open_pipeline,
    opened,
    say_notes,
)
from pusa.cli.shared.flags import request_of
from pusa.cli.shared.options import (
    CLIP,
    CONDITIONS,
    MANY,
    OFFICIAL,
    SAMPLING,
    File,
    GivenSampling,
    Many,
    Model,
    Output,
    Whole,
    model_default,
    values_of,
    with_preset,
)
from pusa.cli.shared.terminal import Report, Terminal
from pusa.errors import InputError

if TYPE_CHECKING:
    from pusa.generation.settings import Settings

FILES = ("image", "last_image", "keyframe", "video", "edit")
"""The flags that give pictures and clips."""


def generate(
    prompt: str | None = None,
    *,
    image: Annotated[str | None, Parameter(group=CONDITIONS, metavar="PATH")] = None,
    last_image: Annotated[str | None, Parameter(group=CONDITIONS, metavar="PATH")] = None,
    keyframe: Annotated[tuple[str, ...], Many, Parameter(group=CONDITIONS, metavar="PATH@FRAME[,noise=M]")] = (),
    video: Annotated[
        tuple[str, ...], Many, Parameter(group=CONDITIONS, metavar="PATH@FRAME[,frames=N][,start=S][,noise=M]")
    ] = (),
    edit: Annotated[str | None, Parameter(group=CONDITIONS, metavar="PATH")] = None,
    strength: Annotated[float | None, Parameter(group=CONDITIONS, show_default=lambda _: "0.6")] = None,
    noise: Annotated[float | None, Parameter(group=CONDITIONS, show_default=lambda _: "0")] = None,
    frames: Annotated[int | None, Whole, Parameter(group=CLIP, show_default=model_default)] = None,
    size: Annotated[str | None, Parameter(group=CLIP, metavar="WxH", show_default=model_default)] = None,
    fit: Annotated[
        Literal["crop", "pad", "stretch"] | None, Parameter(group=CLIP, show_default=lambda _: "crop")
    ] = None,
    count: Annotated[int, Whole, Parameter(group=CLIP)] = 1,
    prompts: Annotated[Path | None, File, Parameter(group=MANY, metavar="FILE")] = None,
    ray: Annotated[str | None, Parameter(group=MANY, metavar="ADDRESS")] = None,
    workers: Annotated[int | None, Whole, Parameter(group=MANY, show_default=lambda _: "one per GPU")] = None,
    from_: Annotated[Path | None, File, Parameter(name="--from", group=CLIP, metavar="CLIP.json")] = None,
    matrix: Annotated[Path | None, File, Parameter(group=SAMPLING, metavar="FILE.json", show_default=False)] = None,
    sampling: GivenSampling = GivenSampling(),
    model: Model = Model(),
    output: Output = Output(),
    image_paths: Annotated[
        tuple[str, ...], Many, Parameter(group=OFFICIAL, metavar="PATH...", consume_multiple=True)
    ] = (),
    cond_position: Annotated[str | None, Parameter(group=OFFICIAL, metavar="0,20")] = None,
    noise_multipliers: Annotated[str | None, Parameter(group=OFFICIAL, metavar="0.2,0.5")] = None,
) -> Report:
    """Make a clip from a prompt and from pictures or clips at any frames.

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
        Clip that fills the frames from FRAME on; the default is 0. If FRAME is negative, the clip ends there: @-1 ends
        with the last frame. frames=9 uses nine of its frames, start=-8 uses its last eight. Repeatable.
    edit
        Clip to change. Its motion stays, and the prompt decides how it looks.
    strength
        How much of --edit may change, above 0: a little at 0.1, everything at 1.
    noise
        Noise multiplier of every condition that is given without its own: 0 keeps it exactly, 1 ignores it.
    frames
        Length in frames: 4n+1.
    size
        Width and height in pixels, multiples of 16.
    fit
        How pictures of another aspect ratio are fitted to the size.
    count
        Number of clips, with consecutive seeds.
    prompts
        Make one clip for each line of a file. A .txt file has a prompt on each line. A .jsonl file has a JSON object on
        each line; its keys are options (prompt, image, seed, ...) and name. To resume, run the command again. If you
        start it several times, the processes share the work.
    ray
        Share the clips of --prompts over a Ray cluster: its address, auto, or local to start one on this machine.
    workers
        Number of processes, with --ray.
    matrix
        Your own timestep matrix. It replaces steps, shift, schedule and noise. pusa info --matrix draws it.
    from_
        Remake the clip that this sidecar describes. Other options change it: --from clip.json --seed 5 makes a variant.
    image_paths
        Pictures, in the order of --cond-position.
    cond_position
        Latent frame of each picture.
    noise_multipliers
        Noise multiplier of each picture.
    """
    terminal = Terminal(output.verbosity.verbose)
    own = {
        "prompt": prompt,
        "strength": strength,
        "frames": frames,
        "size": None if size is None else read_size(size),
        "fit": fit,
        "matrix": matrix,
    }
    if from_ is not None and (model != Model() or prompts is not None or image_paths or cond_position):
        raise InputError(
            "--from uses the model and the LoRAs of its clip; leave out the options of the model, --prompts and the "
            "flags of the official scripts."
        )
    noise_flag = noise
    given = sampling
    model, sampling, noise = with_preset(model, sampling, noise)
    options = {name: value for name, value in {**values_of(sampling), **own}.items() if value is not None}
    flags: dict[str, Any] = {
        "image": image,
        "last_image": last_image,
        "keyframe": keyframe,
        "video": video,
        "edit": edit,
        "noise": noise,
    }
    if from_ is not None:
        if output.fps is not None:
            raise InputError("--fps: a clip keeps the frame rate of its model; leave --fps out.")
        changes = {name: value for name, value in {**values_of(given), **own}.items() if value is not None}
        conditions = request_of(**flags, options={}).conditions if any(flags[name] for name in FILES[:4]) else ()
        if edit is not None or (noise_flag is not None and not conditions):
            raise InputError("--from keeps the clip to edit and the noise of its conditions; give new conditions, too.")
        from pusa.cli.shared.remake import remake

        return remake(from_, changes | ({"conditions": conditions} if conditions else {}), count, output, terminal)
    if prompts is not None:
        if image_paths or cond_position or noise_multipliers or count != 1:
            raise InputError(
                "--prompts makes one clip for each line; leave out --count and the flags of the official scripts."
            )
        from pusa.cli.shared.batch import make_batch

        return make_batch(prompts, flags, options, model, output, terminal, ray=ray, workers=workers)
    if ray is not None or workers is not None:
        raise InputError("--ray and --workers need --prompts, whose clips they share; give --prompts FILE.")
    if prompt is None and not any((*(flags[name] for name in FILES), image_paths)):
        raise InputError(
            'There is nothing to make a clip from: give a prompt, such as pusa generate "a red circle moves left on a '
            'black background", or a picture or clip, such as --image PATH.'
        )
    request = request_of(
        **flags,
        image_paths=image_paths,
        cond_position=cond_position,
        noise_multipliers=noise_multipliers,
        options=options,
    )
    if noise_flag and not request.conditions:
        hint = "; --strength sets how much of --edit may change" if edit else "; give one, or leave --noise out"
        raise InputError(f"--noise {noise:g} applies to pictures and clips, and none is given{hint}.")
    if count < 1:
        raise InputError(f"--count {count}: give 1 or more.")
    several = [replace(request, seed=request.seed + i) for i in range(count)]
    sources = [*request.files(), *([] if matrix is None else [matrix])]
    check_output(output, sources)
    request.check_files()
    limits = limits_of(model, terminal)
    check_rate(output, limits)
    settings = request.check(limits)
    request = opened(request, terminal)  # last, because a large picture takes seconds

    def paths(settings: Settings) -> dict[int, Path]:
        names = {one.seed: default_name(one.prompt, one.seed, settings.frames, settings.size) for one in several}
        return {seed: output.path(*name, seed=seed if count > 1 else None) for seed, name in names.items()}

    check_paths(paths(settings).values(), output, sources, bytes_needed=count * bytes_of(limits, settings))
    notes = say_notes(request, limits, model, terminal)
    if request.init is None:
        check_shares(model, request.size, request.frames)
    pipe = open_pipeline(
        model,
        terminal,
        size=request.size,
        frames=request.frames,
        sampling=settings,
    )
    request = pipe.opened(request)
    wanted = paths(request.check(pipe.limits))
    if request.init is not None:  # its length, which is in the name, is known only now
        check_paths(wanted.values(), output, sources)
    jobs = {path: partial(replace(request, seed=seed).run, pipe) for seed, path in wanted.items()}
    return make(jobs, output, terminal, notes=notes)
