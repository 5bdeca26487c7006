"""One clip that `pusa generate` is asked for: everything that can be checked without a model, then the job with one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pusa.cli.shared.arguments import Source, multiplier
from pusa.cli.shared.arguments import size as read_size
from pusa.cli.shared.conditions import Picture, Video, official, pictures, videos
from pusa.cli.shared.options import Sampling
from pusa.errors import InputError

if TYPE_CHECKING:
    from pusa.cli.shared.clip_jobs import Callback
    from pusa.generation.clip import GeneratedClip
    from pusa.generation.limits import Limits
    from pusa.generation.pipeline import Pipeline
    from pusa.generation.settings import Settings


@dataclass(frozen=True)
class Request:
    """Prompt, conditions and sampling of a clip, each checked as far as no model is needed."""

    prompt: str
    given: tuple[Picture | Video, ...]
    editing: Source | None
    strength: float | None
    frames: int | None
    shape: tuple[int, int] | None
    fit: Literal["crop", "pad", "stretch"]
    sampling: Sampling

    @classmethod
    def of(
        cls,
        *,
        prompt: str,
        image: str | None,
        last_image: str | None,
        keyframe: Sequence[str],
        video: Sequence[str],
        edit: str | None,
        strength: float | None,
        noise: float,
        frames: int | None,
        size: str | None,
        fit: Literal["crop", "pad", "stretch"],
        sampling: Sampling,
        image_paths: Sequence[str] = (),
        cond_position: str | None = None,
        noise_multipliers: str | None = None,
    ) -> Request:
        """From the options of `pusa generate`, which explains them; InputError for what they cannot mean."""
        multiplier(str(noise), "--noise")
        given: list[Picture | Video] = [*pictures(image, last_image, keyframe, noise)]
        if image_paths or cond_position or noise_multipliers:
            given += official(image_paths, video, cond_position, noise_multipliers or str(noise))
        else:
            given += videos(video, noise)
        if strength is not None and edit is None:
            raise InputError("--strength says how much of a clip to --edit may change; give --edit PATH with it.")
        editing = None if edit is None else Source.parse(edit, "--edit", keys=("frames", "start"))
        shape = None if size is None else read_size(size)
        return cls(prompt, tuple(given), editing, strength, frames, shape, fit, sampling)

    @property
    def pictures(self) -> list[Path]:
        """The pictures that it is made from."""
        return [thing.path for thing in self.given if isinstance(thing, Picture)]

    @property
    def videos(self) -> list[Path]:
        """The clips that it is made from."""
        return [thing.path for thing in (*self.given, self.editing) if isinstance(thing, Video | Source)]

    def check(self, limits: Limits, clips: int = 1) -> None:
        """InputError for what the model cannot make, as far as it is known without its weights and the clips given."""
        from pusa.generation.conditions import frame_index
        from pusa.generation.settings import check_seed

        check_seed(self.sampling.seed, clips)
        strength = 1.0 if self.strength is None else self.strength
        settings = limits.settings(frames=self.frames, size=self.shape, strength=strength, **self.sampling.wishes())
        if self.editing is None or self.frames is not None:
            for one in self.given:
                frame_index(one.at, settings.frames, limits.defaults.fps, str(one.path))

    def job(self, pipe: Pipeline) -> tuple[Settings, Callable[[int, Callback], GeneratedClip]]:
        """What the model makes of it, and the function that makes it with a seed."""
        from pusa.generation.clip_sources import open_footage
        from pusa.generation.conditions import Clip, frame_index

        frames, fps = self.frames, pipe.defaults.fps
        options: dict[str, Any] = {"size": self.shape, "fit": self.fit, "strength": self.strength}
        if self.editing:
            footage = open_footage(self.editing.path, fps, pipe.vae)
            start = frame_index(self.editing.start or 0, footage.count, fps, f"the start of {self.editing.path}")
            options["init"] = Clip(footage, start=start)
            frames = frames or self.editing.frames or _whole_groups(footage.count - start, self.editing.path)
        settings = pipe.limits.settings(frames=frames, size=self.shape)
        conditions = [
            thing.condition() if isinstance(thing, Picture) else thing.condition(pipe, settings.frames)
            for thing in self.given
        ]

        def make(seed: int, callback: Callback) -> GeneratedClip:
            chosen = self.sampling.arguments() | {"seed": seed, "frames": settings.frames}
            return pipe.generate(self.prompt, conditions, **chosen, **options, callback=callback)

        return settings, make


def _whole_groups(frames: int, path: Path) -> int:
    """The frames of a clip to edit; InputError unless they make a clip."""
    if frames % 4 != 1:
        fewer = max(1, (frames - 1) // 4 * 4 + 1)
        raise InputError(
            f"--edit {path}: {frames} frames are no clip, which has 4n+1; edit its first with frames={fewer}."
        )
    return frames
