"""The options of sampling, defined once: each is a flag, a key of a batch file, a sidecar entry and a keyword."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import KW_ONLY, fields
from typing import Annotated, Any, Literal, TypedDict

from annotated_types import Ge, Gt, Le

from pusa.acceleration.names import Acceleration
from pusa.errors import InputError
from pusa.generation.options import Option, python_number, strict_dataclass
from pusa.generation.schedule import DEFAULT, Schedule

MAX_STEPS = 1000
"""one step for each timestep that the model was trained on"""
# Sphinx reads no f-string inside an annotation.
_GIVE_STEPS = f"give a whole number from 1 to {MAX_STEPS}"
Solver = Literal["euler", "dpm++2m"]
GuidanceBatch = Literal["auto", "on", "off"]


def _schedule(value: Any) -> Any:
    return str(Schedule.parse(value)) if isinstance(value, str) else value


def _factor(value: Any) -> Any:
    """Return the number that `2x` means; any other value as it is."""
    if isinstance(value, str):
        with suppress(ValueError):
            return float(value.lower().removesuffix("x"))
    return value


def _acceleration(value: Any) -> Any:
    if isinstance(value, str) and value.strip().lower() == "none":
        return None
    return str(Acceleration.parse(value)) if isinstance(value, str) else value


def _interval(value: Any) -> Any:
    """Return the text of two noise levels, which may be given as numbers; any other value as it is."""
    if isinstance(value, tuple | list):
        value = ",".join(str(python_number(level)) for level in value)
    if not isinstance(value, str):
        return value
    try:
        low, high = (float(level) for level in value.split(","))
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low <= high <= 1:
        raise InputError(
            f"guidance_interval is {value}: give two noise levels from 0 to 1, the lower one first, such as 0.2,0.9."
        )
    return f"{low:g},{high:g}"


@strict_dataclass
class Sampling:
    """How the sampler walks from noise to clip. None stands for the model's own default."""

    _: KW_ONLY
    steps: Annotated[
        int | None,
        Ge(1),
        Le(MAX_STEPS),
        Option("Sampling steps.", _GIVE_STEPS, of_model=True),
    ] = None
    guidance: Annotated[
        float | None,
        Option(
            "Classifier-free guidance scale; 1 calls the model once per step instead of twice.",
            "give a finite number, 1 for none",
            of_model=True,
        ),
    ] = None
    guidance_2: Annotated[
        float | None,
        Option(
            "For a model with two experts, the guidance scale of the low-noise expert.",
            "give a finite number, 1 for none",
            default="that of the other expert",
            falls_back_to="guidance",
            experts=True,
        ),
    ] = None
    guidance_batch: Annotated[
        GuidanceBatch,
        Option(
            "Both branches of guidance in one call of the model: on, off, or auto, which does so for small clips. The "
            "velocity is the same up to rounding."
        ),
    ] = "auto"
    guidance_interval: Annotated[
        str | None,
        Option(
            "Noise levels of guidance, such as 0.2,0.9. If the noisiest frame that a step changes is outside, the step "
            "calls the model once.",
            "give two noise levels from 0 to 1, such as 0.2,0.9",
            default="guidance in every step",
            convert=_interval,
        ),
    ] = None
    boundary: Annotated[
        float | None,
        Ge(0),
        Le(1),
        Option(
            "For a model with two experts, the noise level at which they change.",
            "give a noise level from 0 to 1, such as 0.875",
            of_model=True,
            experts=True,
        ),
    ] = None
    shift: Annotated[
        float | None,
        Gt(0),
        Option(
            "Timestep shift: a higher value spends more steps at high noise.",
            "give a number above 0, such as 5 (1 leaves the grid evenly spaced)",
            of_model=True,
        ),
    ] = None
    schedule: Annotated[
        str | None,
        Option(
            "How the latent frames descend: synchronous, staircase,block=3,delay=5, chunked,block=3, "
            "sliding-window,window=6,block=3 or in-context,given=1,buffers=2; add renoise for a few-step distilled "
            "model.",
            "give a text such as staircase,block=3,delay=5",
            default=DEFAULT,
            convert=_schedule,
        ),
    ] = None
    solver: Annotated[Solver, Option("ODE solver.")] = "euler"
    accelerate: Annotated[
        str | None,
        Option(
            "Leave out what changes little: steps,threshold=0.1 (whole steps), frames,threshold=0.1 (single frames), "
            "held,every=4 (given frames), tokens,share=0.5, or steps+held. The clip changes a little.",
            "give a text such as steps,threshold=0.1",
            default="none",
            convert=_acceleration,
        ),
    ] = None
    speed: Annotated[
        float | None,
        Ge(1),
        Option(
            "Choose the acceleration that stays closest among those that are so many times as fast, by pusa calibrate.",
            "give a number of at least 1, such as 2",
            convert=_factor,
        ),
    ] = None
    min_psnr: Annotated[
        float | None,
        Gt(0),
        Option(
            "Choose the fastest acceleration among those that stay so close to the plain clip (dB), by pusa calibrate.",
            "give a number of dB, such as 30",
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.guidance_batch == "on" and self.accelerate and Acceleration.parse(self.accelerate).library:
            raise InputError(
                f"guidance_batch is on, and accelerate is {self.accelerate}, a cache of diffusers that needs one call "
                "for each branch: leave one of them out."
            )
        if self.accelerate is not None and (self.speed is not None or self.min_psnr is not None):
            raise InputError(
                f"accelerate is {self.accelerate}, and speed and min_psnr choose one: leave accelerate out, or both of "
                "them."
            )
        if self.schedule is not None and self.solver != "euler" and Schedule.parse(self.schedule).renoise:
            raise InputError(
                f"The schedule {self.schedule} predicts the clean clip in every step, so that the solver {self.solver} "
                "has no effect: leave renoise or the solver out."
            )

        if self.guidance == 1 and self.guidance_2 in (None, 1):
            idle = ["guidance_batch"] * (self.guidance_batch == "on")
            idle += ["guidance_interval"] * (self.guidance_interval is not None)
            if idle:
                raise InputError(f"guidance is 1, so that {idle[0]} has no effect: leave it out, or raise guidance.")

    @property
    def interval(self) -> tuple[float, float] | None:
        """The noise levels of `guidance_interval`, the lower one first."""
        if self.guidance_interval is None:
            return None
        low, high = map(float, self.guidance_interval.split(","))
        return low, high

    def sampling(self) -> dict[str, Any]:
        """The values of the fields of `Sampling`, by name."""
        return {one.name: getattr(self, one.name) for one in fields(Sampling)}  # type: ignore[arg-type]


class SamplingOptions(TypedDict, total=False):
    """The fields of `Sampling` as keywords, for type checkers; a test compares the two."""

    steps: int | None
    guidance: float | None
    guidance_2: float | None
    guidance_batch: GuidanceBatch
    guidance_interval: str | None
    boundary: float | None
    shift: float | None
    schedule: str | None
    solver: Solver
    accelerate: str | None
    speed: float | None
    min_psnr: float | None
