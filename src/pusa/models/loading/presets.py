"""Presets: settings that belong together, by name. They give the weights, their strengths and the sampling.

An option that the user gives overrides that of the preset. Nothing here imports torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from pusa.errors import InputError


@dataclass(frozen=True)
class Preset:
    """Options of the commands that make clips, by name. With None or () the default of the model is used.

    negative_prompt: is used with guidance above 1.

    note: the origin and the purpose of the settings. lora, lora_high, lora_low: OWNER/REPOSITORY/FILE:STRENGTH.
    """

    note: str
    model: str
    lora: tuple[str, ...] = ()
    lora_high: tuple[str, ...] = ()
    lora_low: tuple[str, ...] = ()
    steps: int | None = None
    guidance: float | None = None
    shift: float | None = None
    boundary: float | None = None
    noise: float | None = None
    negative_prompt: str | None = None

    def options(self) -> dict[str, Any]:
        """Return the options that the preset sets, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "note"}
        return {name: value for name, value in values.items() if value not in (None, ())}


_WAN21, _WAN22 = "Wan-AI/Wan2.1-T2V-14B-Diffusers", "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
_PUSA21 = "Kijai/WanVideo_comfy/Pusa/Wan21_PusaV1_LoRA_14B_rank512_bf16.safetensors:1.4"
_PUSA22 = "RaphaelLiu/Pusa-Wan2.2-V1"
_NEGATIVE = (
    "Bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, images, static, overall "
    "gray, worst quality, low quality, JPEG compression residue, ugly, incomplete, extra fingers, poorly drawn hands, "
    "poorly drawn faces, deformed, disfigured, misshapen limbs, fused fingers, still picture, messy background, three "
    "legs, many people in the background, walking backwards"
)
"""Wan's negative prompt in English, which every official script of Pusa gives."""
_LIGHTNING = "lightx2v/Wan2.2-Lightning/Wan2.2-T2V-A14B-4steps-lora-rank64-Seko-V1.1"

PRESETS: Mapping[str, Preset] = MappingProxyType({
    "pusa-wan21": Preset(
        "Official Pusa on Wan2.1 14B. Its authors advise strength 1.3 to 1.5, guidance about 3 and 10 steps or more.",
        _WAN21,
        lora=(_PUSA21,),
        steps=10,
        guidance=3.0,
        shift=5.0,
        noise=0.0,
        negative_prompt=_NEGATIVE,
    ),
    "pusa-wan21-4step": Preset(
        "The same with four steps, by the low-noise Lightning LoRA of Wan2.2, as in the official scripts.",
        _WAN21,
        lora=(_PUSA21, f"{_LIGHTNING}/low_noise_model.safetensors:1"),
        steps=4,
        guidance=1.0,
        shift=5.0,
        noise=0.0,
        negative_prompt=_NEGATIVE,
    ),
    "pusa-wan22": Preset(
        "Official Pusa on Wan2.2 A14B: strengths 1.5 and 1.4, and 0.2 noise on conditions, which its authors suggest.",
        _WAN22,
        lora_high=(f"{_PUSA22}/high_noise_pusa.safetensors:1.5",),
        lora_low=(f"{_PUSA22}/low_noise_pusa.safetensors:1.4",),
        steps=30,
        guidance=3.0,
        shift=5.0,
        boundary=0.875,
        noise=0.2,
        negative_prompt=_NEGATIVE,
    ),
    "pusa-wan22-4step": Preset(
        "The same with four steps, two for each expert, by the Lightning LoRAs.",
        _WAN22,
        lora_high=(f"{_PUSA22}/high_noise_pusa.safetensors:1.5", f"{_LIGHTNING}/high_noise_model.safetensors:1"),
        lora_low=(f"{_PUSA22}/low_noise_pusa.safetensors:1.4", f"{_LIGHTNING}/low_noise_model.safetensors:1"),
        steps=4,
        guidance=1.0,
        shift=5.0,
        boundary=0.875,
        noise=0.2,
        negative_prompt=_NEGATIVE,
    ),
    "paper": Preset(
        "The benchmark of arXiv 2507.16116: 10 steps, strength 1.4, clean first frame. Guidance and shift, which it "
        "does not state, are those of its code.",
        _WAN21,
        lora=(_PUSA21,),
        steps=10,
        guidance=3.0,
        shift=5.0,
        noise=0.0,
        negative_prompt=_NEGATIVE,
    ),
})  # fmt: skip


def named(name: str) -> Preset:
    """Return the preset with this name. InputError if there is none."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(PRESETS)}."
        raise InputError(f"There is no preset {name!r}: {hint}")
    return PRESETS[name]
