"""What a model can make, from its configuration files alone.

`Limits.settings` decides every value of a request, or refuses the request. It needs no weights, so that a command can
refuse a clip before it loads 30 GB. Only a schedule or a matrix needs torch. Everything else is checked
without it, so that a mistake is told at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

from pusa.acceleration.names import Acceleration
from pusa.errors import InputError
from pusa.generation.calibration import Calibration
from pusa.generation.options import options_of
from pusa.generation.request import Size
from pusa.generation.sampling import Sampling, SamplingOptions
from pusa.generation.schedule import Schedule
from pusa.generation.settings import Settings
from pusa.models.backbone import Defaults, Geometry
from pusa.models.loading import configurations, sources

if TYPE_CHECKING:
    from pusa.core.timesteps import TimestepMatrix
    from pusa.models.backbone import Backbone
    from pusa.models.loading.sources import Beside


@dataclass(frozen=True)
class Limits:
    """What decides which clips a model can make.

    Attributes:
        source: the model's name, for error messages.
        defaults: the values of options that are not given.
        geometry: pixel frames per latent frame, pixels per latent and per token.
        positions: how many positions its rotary embedding has along time, height and width.
        experts: whether it has two experts.
    """

    source: str
    defaults: Defaults
    geometry: Geometry
    positions: int
    experts: bool

    @property
    def multiple(self) -> int:
        """Width and height are multiples of this many pixels: of a token, and of 2, because H.264 has even sides."""
        return lcm(self.geometry.multiple, 2)

    @classmethod
    def of(cls, name: str, folder: Path, beside: Beside) -> Self:
        """The limits of the model in `folder`. name: the model in error messages. beside: its parts in other places.

        If no autoencoder is found or given, Wan's own is assumed.
        """
        transformer = sources.config(name, folder, "transformer")
        return cls(
            name,
            configurations.defaults_of(folder, transformer_2=beside.get("transformer_2")),
            configurations.geometry(name, folder, beside),
            int(transformer.get("rope_max_seq_len", 1024)),
            len(sources.transformers_of(name, folder, beside)) > 1,
        )

    @classmethod
    def loaded(cls, backbone: Backbone) -> Self:
        """The limits of a loaded model."""
        return cls(
            backbone.source,
            backbone.defaults,
            backbone.geometry,
            backbone.positions,
            backbone.transformer_2 is not None,
        )

    def settings(
        self,
        *,
        frames: int | None = None,
        size: Size | None = None,
        strength: float = 1.0,
        matrix: TimestepMatrix | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Settings:
        """Fill each option that is None with the model's default, or the matrix's shape, and check all of them.

        options: the fields of `Sampling`. Raises InputError for what the model cannot make.
        """
        sampling = Sampling(**options)
        if matrix is not None and sampling.steps not in (None, matrix.steps):
            raise InputError(f"The matrix has {matrix.steps} steps but steps={sampling.steps}: leave steps out.")
        if matrix is not None and sampling.solver != "euler" and bool(matrix.renoise.all()):
            raise InputError(
                f"The matrix re-noises in every step, so that the solver {sampling.solver} has no effect: leave the "
                "solver out."
            )
        values = sampling.sampling()
        for name, (_, option) in options_of(Sampling).items():
            if option.experts and not self.experts:
                if values[name] is not None:
                    raise InputError(
                        f"{self.source} has one transformer, and {name} is for two experts: leave it out, and a preset "
                        "that sets it."
                    )
            elif values[name] is None and name == "steps" and matrix is not None:
                values[name] = matrix.steps
            elif values[name] is None and option.falls_back_to:
                values[name] = values[option.falls_back_to]
            elif values[name] is None and option.of_model:
                values[name] = getattr(self.defaults, name)
        if values["speed"] is not None or values["min_psnr"] is not None:
            known = Calibration.find(self.source, values["steps"])
            values["accelerate"] = known.choose(values.pop("speed"), values.pop("min_psnr"))
        for name in ("guidance", "shift"):  # a `pusa.json` may say 5 for 5.0
            values[name] = float(values[name])
        frames = self._frames(frames, matrix)
        settings = Settings(frames=frames, size=self.check_size(size), strength=float(strength), **values)
        slots, walked = self.geometry.latent_frames(frames), matrix
        if matrix is None and sampling.schedule is not None:
            from pusa.core import sigmas

            grid = sigmas.grid(settings.steps, settings.shift, settings.strength)
            walked = Schedule.parse(sampling.schedule).matrix(grid, slots)
        if settings.accelerate is not None:
            Acceleration.parse(settings.accelerate).check(settings.steps, slots, walked)
        return settings

    def _frames(self, frames: int | None, matrix: TimestepMatrix | None) -> int:
        if frames is None:
            frames = self.defaults.frames if matrix is None else self.geometry.pixel_frames(matrix.frames)
        _check_whole("frames", frames)
        if frames > (most := self.geometry.pixel_frames(self.positions)):
            raise InputError(
                f"{frames:,} frames are too many: {self.source} has positions for {self.positions:,} latent frames; "
                f"make at most {most:,} at once, and extend the clip."
            )
        slots = self.geometry.latent_frames(frames)
        if matrix is not None and matrix.frames != slots:
            raise InputError(
                f"The matrix has {matrix.frames} latent frames but {frames} frames have {slots}: make it for {slots}, "
                f"or give {self.geometry.pixel_frames(matrix.frames)} frames."
            )
        return frames

    def window(self, added: int | None, overlap: int | None, *, clips: int) -> tuple[int, int]:
        """(overlap, added frames) of an extension of one clip, or of a transition between two.

        By default the overlap is a quarter of the model's clip, at most four latent frames, and the window is as long
        as the model's clip. Raises InputError unless the overlap fills latent frames and whole groups are added.
        """
        group = self.geometry.frames_per_slot
        if overlap is None:
            overlap = min(3 * group + 1, self.defaults.frames // (4 * group) * group + 1)
        elif overlap <= group or not self.geometry.is_whole(overlap):
            examples = ", ".join(str(n * group + 1) for n in (1, 2))
            raise InputError(
                f"overlap is {overlap} frames: give {group}m+1 of them, such as {examples} or {3 * group + 1}."
            )
        if added is None:
            added = max(group, self.defaults.frames - clips * overlap + clips - 1)
        most = self.geometry.pixel_frames(self.positions) - clips * overlap + clips - 1
        if most < group:
            raise InputError(f"overlap is {overlap:,} frames, which leaves no room for new ones: give {3 * group + 1}.")
        if added > most:
            raise InputError(
                f"{added:,} frames cannot be added at once: {self.source} has positions for {self.positions:,} latent "
                f"frames, so that it adds at most {most:,} to an overlap of {overlap}; add fewer, and extend again."
            )
        if added < group or added % group:
            below = max(group, self.geometry.groups(added))
            raise InputError(f"{added} frames cannot be added: give a multiple of {group}, {below} or {below + group}.")
        return overlap, added

    def check_size(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """(width, height) in pixels, the model's default for None; InputError unless the model can make it."""
        pair = size or self.defaults.size
        if isinstance(pair, str) or len(pair) != 2:
            raise InputError(f"size is {size!r}: give (width, height).")
        for side in pair:
            _check_whole("size", side)
        width, height = pair
        if max(width, height) > (most := self.positions * self.geometry.multiple):
            raise InputError(f"The size {width}x{height} is too large: {self.source} makes sides of at most {most:,}.")
        if width < 1 or height < 1 or width % self.multiple or height % self.multiple:
            better = "x".join(str(max(1, round(side / self.multiple)) * self.multiple) for side in (width, height))
            raise InputError(
                f"The size {width}x{height} cannot be made: both sides must be multiples of {self.multiple}, as in "
                f"{better}."
            )
        return width, height


def _check_whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{name} is {value!r}: give a whole number.")
