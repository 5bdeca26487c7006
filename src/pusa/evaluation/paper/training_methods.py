"""The methods that are compared: each trains a text-to-video model to use given frames, on the same clips.

Every method starts from the same base model and has the same number of steps. For a seed, all methods have the same
batches, noise and dropped captions for a seed. The methods differ in the noise levels that training draws, in the
weights that are trained, and in how the picture enters the model: as a frame without noise or, as in Wan-I2V, in
additional input channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pusa import adapters
from pusa.adapters.base import Adapter
from pusa.training.config.sections import LoraSettings, SigmaConfig

LORA_RATE, FULL_RATE, IMAGE_RATE, LONG_RATE = 3e-3, 1e-3, 6e-3, 3e-3
"""Each is the best of several learning rates for one seed, on 24 scenes that no result is reported on; see `Method`."""
RANK = 32
BATCH, STEPS = 8, 400
"""clips in a batch; training steps, unless a table varies them"""
SEEDS = (0, 1, 2)
STRENGTHS = (1.0, 1.4, 1.7, 2.0)
STRENGTH = 1.7
"""LoRA strength, unless a table varies it: the strength in the paper that is nearest to `embedded.STRENGTH`, which was
chosen on scenes that no result is reported on."""

TASK_SHARES = {"image-to-video": 0.5, "start-end": 0.2, "extension": 0.2, "text-to-video": 0.1}
"""shares of the tasks among the samples that are not independent"""
MIXTURES = (0.75, 0.5, 0.25)
"""shares of independent levels, beside tasks"""


def mixed(independent: float) -> SigmaConfig:
    """Independent levels in a share of the samples, and rows of tasks in the others."""
    shares = {task: round((1 - independent) * share, 6) for task, share in TASK_SHARES.items()}
    tasks = shares | ({"independent": independent} if independent else {})
    return SigmaConfig(pattern="tasks", tasks=tasks)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Method:
    """A training method.

    title: its name in the tables. sigma: the noise levels that training draws. rank: of the LoRA; None trains all
    weights. image_channels: the picture enters as in Wan-I2V. rate: the highest learning rate. It was chosen by the
    PSNR: for all weights 18.7, 19.2, 19.4 and 19.3 dB at 1e-4, 3e-4, 1e-3 and 3e-3; with image channels 15.8, 16.0,
    18.1, 19.7, 20.0 and 19.5 dB at 1e-4, 3e-4, 1e-3, 3e-3, 6e-3 and 1e-2. constant: the learning rate does not decay,
    so that the training can be continued.
    """

    title: str
    sigma: SigmaConfig = field(default_factory=SigmaConfig)
    rank: int | None = RANK
    image_channels: bool = False
    rate: float = LORA_RATE
    constant: bool = False

    @property
    def adapter(self) -> Adapter:
        """The part of the model that the method trains."""
        return adapters.from_settings(None if self.rank is None else LoraSettings(rank=self.rank))


METHODS: dict[str, Method] = {
    "vta": Method("this method, LoRA"),
    "vta-full": Method("this method, all weights", rank=None, rate=FULL_RATE),
    "first-clean": Method("first frame always clean, LoRA", SigmaConfig(pattern="first-clean")),
    "ptss-0.2": Method("PTSS 0.2, LoRA", SigmaConfig(pattern="ptss", p=0.2)),
    "ptss-0.5": Method("PTSS 0.5, LoRA", SigmaConfig(pattern="ptss", p=0.5)),
    "ptss-0.8": Method("PTSS 0.8, LoRA", SigmaConfig(pattern="ptss", p=0.8)),
    "i2v": Method(
        "image channels, all weights",
        SigmaConfig(pattern="shared", law="shifted", shift=3.0),
        rank=None,
        image_channels=True,
        rate=IMAGE_RATE,
    ),
    "i2v-long": Method(
        "image channels, all weights, longer",
        SigmaConfig(pattern="shared", law="shifted", shift=3.0),
        rank=None,
        image_channels=True,
        rate=LONG_RATE,
        constant=True,
    ),
    "vta-shifted": Method("this method, the official code's levels", SigmaConfig(law="shifted", shift=5.0)),
    "tasks": Method("tasks, LoRA", mixed(0.0)),
    **{f"mixed-{share:g}": Method(f"{share:.0%} independent, LoRA", mixed(share)) for share in MIXTURES},
    **{f"rank-{rank}": Method(f"this method, rank {rank}", rank=rank) for rank in (4, 16, 64)},
}
