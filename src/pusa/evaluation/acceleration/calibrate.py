"""Measure the accelerations on a model: speed and distance to the plain clip, in three tasks.

Text to video, image to video and extension are made plainly and with each acceleration in turn. The pictures come from
the model's own clip. Times are compared with the plain clip of the same task, so that other work on the machine matters
less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pusa.evaluation.acceleration.proxies import Proxies
from pusa.evaluation.acceleration.tasks import computed, psnr, tasks_from, timed
from pusa.generation.calibration import Calibration, Measured
from pusa.generation.pipeline import Pipeline
from pusa.versions import versions

CANDIDATES = (
    *(f"steps,threshold={threshold:g}" for threshold in (0.05, 0.1, 0.15, 0.2, 0.3, 0.4)),
    *(f"frames,threshold={threshold:g}" for threshold in (0.05, 0.1, 0.15, 0.2, 0.3, 0.4)),
    *(f"steps,threshold={threshold:g}+held,every=4" for threshold in (0.05, 0.1, 0.2, 0.3)),
    "tokens,share=0.5",
)
"""the accelerations that are measured"""
PROMPTS = (
    "a red circle moves right on a white background",
    "the camera pans left over a photograph",
    "a blue square moves down on a black background",
)
"""The default prompts. The embedded model knows them, and so does every other model."""


def calibrate(
    pipe: Pipeline,
    prompts: Sequence[str] = PROMPTS[:2],
    candidates: Sequence[str] = CANDIDATES,
    progress: Callable[[str, int, int], None] = lambda activity, done, total: None,
    **options: Any,
) -> Calibration:
    """Measure accelerations on a loaded model.

    prompts: one plain clip for each. options: of `Pipeline.generate`, such as steps, size and frames. progress: called
    with the activity, the clips made and the clips in all.
    """
    geometry = pipe.backbone.geometry
    shape: dict[str, Any] = {key: options.get(key) for key in ("steps", "frames", "size", "guidance")}
    settings = pipe.limits.settings(**shape)
    slots = geometry.latent_frames(settings.frames)
    rows: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    proxies = Proxies(pipe)
    total, done = len(prompts) * (2 if slots < 3 else 3) * (1 + len(candidates)) + len(prompts), 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress("Making clips", done, total)

    progress("Making clips", 0, total)
    for seed, prompt in enumerate(prompts):
        own = {**options, "seed": seed}
        clip = pipe.generate(prompt, **own)
        advance()
        for task in tasks_from(clip, own, slots, geometry.frames_per_slot):
            with proxies.watching() as note:
                pipe.generate(task.prompt, **task.options, callback=note)
            plain, seconds = timed(pipe, task)
            advance()
            for name in candidates:
                made, taken = timed(pipe, task, name)
                speed, distance = seconds / taken, psnr(made.frames, plain.frames, task.made)
                rows.setdefault((name, task.name), []).append((round(speed, 4), round(distance, 2), computed(made)))
                advance()
    about = {
        "size": list(settings.size),
        "frames": settings.frames,
        "guidance": settings.guidance,
        "clips": len(prompts),
        "fingerprint": pipe.backbone.fingerprint,
        "loras": [{"sha256": lora.sha256, "scale": lora.scale} for lora in pipe.loras],
        "device": pipe.device.type,
        "versions": versions(),
    }
    measured = tuple(Measured(*names, *zip(*numbers, strict=True)) for names, numbers in rows.items())
    return Calibration(pipe.backbone.source, settings.steps, measured, about, proxies.correlations())
