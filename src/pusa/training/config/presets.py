"""Presets: named settings for common models, with the memory and the time that a training takes.

If the note of a preset does not say "measured", the values are computed. Memory is the peak on one device: the base
model in the precision of the run (2 bytes per weight in bf16), 16 bytes for each trained weight (float32 weight,
gradient and two Adam moments), the input of every block for gradient checkpointing, and one recomputed block. Time is

    clips × (6 · weights · tokens + 18 · layers · dim · tokens²) / (40 % of the 989 TFLOP/s of an H100)

The presets for one card are computed by `training.fitting`, which rehearses a step.

The factor 6 counts the forward pass, its recomputation and the gradient with respect to the input; a frozen weight
needs no gradient of its own. The factor 18 counts the same for attention: 4 forward, 4 recomputed, 10 backward. Good
trainers reach 40 % of the peak. The time for encoding the clips into the cache is not included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Settings that differ from the defaults, and the cost of a training with them.

    memory: the peak on one device. time: of the training, with the device. note: the purpose of the preset, and whether
    memory and time were measured or computed.
    """

    config: dict[str, Any]
    memory: str
    time: str
    note: str


def _wan(source: str, **train: Any) -> dict[str, Any]:
    return {
        "model": {"source": source},
        "lora": {"rank": 128},
        "train": {
            "steps": 900,
            "accumulate": 8,
            "lr": 1e-4,
            "warmup": 20,
            "precision": "bf16",
            "gradient_checkpointing": True,
            **train,
        },
    }


def _one_card(source: str, memory: str, **data: Any) -> dict[str, Any]:
    """Return the settings for one card of a consumer: a small LoRA, a stored base, and few clips in a step."""
    sections = _wan(source, accumulate=4)
    return {"memory": memory, **sections, "lora": {"rank": 32}, **({"data": data} if data else {})}


_A14B = _wan("Wan-AI/Wan2.2-T2V-A14B-Diffusers")

PRESETS = {
    "tiny": Preset(
        {
            "model": {"source": "tiny-base"},
            "lora": {"rank": 32},
            "train": {"steps": 180, "batch": 16, "lr": 2e-3, "warmup": 10, "schedule": "cosine", "precision": "fp32"},
            "save": {"every": 45},
            "validate": {"every": 45},
        },
        memory="1.2 GB",
        time="2 to 3 min on 2 CPU cores",
        note="The embedded model, for a first try: it learns image-to-video. Measured: 135 s with two threads.",
    ),
    "wan21-1.3b": Preset(
        _wan("Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
        memory="13 GB",
        time="6 h on one H100",
        note="480p, 81 frames, rank 128. Computed.",
    ),
    "wan21-14b": Preset(
        _wan("Wan-AI/Wan2.1-T2V-14B-Diffusers"),
        memory="63 GB",
        time="34 h on one H100",
        note="480p, 81 frames, rank 128. Computed.",
    ),
    "wan22-a14b": Preset(
        {**_A14B, "model": {**_A14B["model"], "expert": "high", "full_range": True}},
        memory="63 GB",
        time="34 h on one H100",
        note="The high-noise expert, on all noise levels. For the other, run again with --model.expert low. Computed.",
    ),
    "wan22-5b": Preset(
        _wan("Wan-AI/Wan2.2-TI2V-5B-Diffusers"),
        memory="27 GB",
        time="10 h on one H100",
        note="704p, 121 frames at 24 fps, rank 128. Computed.",
    ),
    "wan21-14b-24gb": Preset(
        _one_card("Wan-AI/Wan2.1-T2V-14B-Diffusers", "24gb"),
        memory="24 GB, and 30 GB of the machine",
        time="102 h on one RTX 4090 (165 TFLOP/s)",
        note="480p, 81 frames, rank 32, base in fp8, blocks swapped, 4 clips in a step. Computed.",
    ),
    "wan21-14b-12gb": Preset(
        _one_card("Wan-AI/Wan2.1-T2V-14B-Diffusers", "12gb", buckets=["512x288x49"]),
        memory="12 GB, and 30 GB of the machine",
        time="21 h on a GPU of 100 TFLOP/s",
        note="512x288, 49 frames, rank 32, base in fp8, blocks swapped, 4 clips in a step. Computed.",
    ),
    "wan22-5b-16gb": Preset(
        _one_card("Wan-AI/Wan2.2-TI2V-5B-Diffusers", "16gb"),
        memory="15 GB, and 11 GB of the machine",
        time="51 h on a GPU of 100 TFLOP/s",
        note="720p, 121 frames, rank 32, base in fp8, 4 clips in a step. Computed.",
    ),
    "paper": Preset(
        {
            "model": {"source": "Wan-AI/Wan2.1-T2V-14B-Diffusers"},
            "data": {"buckets": ["1280x720x81"]},
            "sigma": {"pattern": "independent", "law": "uniform", "weighting": "none"},
            "lora": {"rank": 512, "alpha": 512.0},
            "train": {
                "steps": 900,
                "batch": 1,
                "accumulate": 8,
                "lr": 1e-5,
                "warmup": 0,
                "schedule": "constant",
                "caption_dropout": 0.0,
                "clip": None,
                "ema": None,
                "precision": "bf16",
                "gradient_checkpointing": True,
            },
            "save": {"every": 150},
            "validate": {"every": 150},
        },
        memory="124 GB; 64 GB on each of 8 devices with --train.parallel fsdp",
        time="139 h on one H100, 17 h on 8",
        note="arXiv 2507.16116: rank 512, 900 steps of 8 clips, lr 1e-5. On 8 devices, give --train.accumulate 1. "
        "Computed.",
    ),
}

MEMORY: dict[str, dict[str, Any]] = {
    f"{gigabytes}gb": {
        "memory": {"base": "fp8", "offload": True, "limit": gigabytes},
        "train": {"precision": "bf16", "gradient_checkpointing": True},
    }
    for gigabytes in (48, 24, 16, 12)
}
"""Memory profiles of a training, `--memory NAME`: settings for a card with so many gigabytes. The number of blocks in
the machine's memory is computed for the model and the clips, see `training.fitting`."""
