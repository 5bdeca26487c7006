"""What `behaviour.py` asks for: pictures and a LoRA that it draws, settings of clips and trainings, and exports.

Words in braces stand for files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

# fmt: off
PROMPTS = ("a red circle moves left on a black background", "a blue square spins on a white background",
           "the camera pans right over a photograph", "a green triangle grows on a gradient background")
SETTINGS = (
    "--steps 2", "--steps 3 --size 48x48", "--steps 2 --size 32x32 --frames 33", "--steps 3 --solver dpm++2m",
    "--steps 2 --guidance 1 --count 2", "--steps 2 --guidance 5 --shift 5", "--steps 2 --negative-prompt blurred",
    "--steps 2 --frames 9 --fit pad", "--steps 2 --size 80x48 --fit stretch",
    "--steps 4 --frames 9 --solver dpm++2m --guidance 1.5", "--steps 2 --model tiny-base",
    "--steps 2 --model tiny-base --lora {lora}:0.7 --size 48x64")
"""Of `generate`, one for each clip of a task."""
LONGER = (
    "--steps 2 --frames 8", "--steps 3 --frames 4 --overlap 5", "--steps 2 --frames 12 --overlap 9",
    "--steps 3 --frames 8 --overlap 5 --solver dpm++2m", "--steps 2 --frames 8 --guidance 1",
    "--steps 2 --frames 8 --guidance 5 --shift 5", "--steps 2 --frames 8 --negative-prompt blurred",
    "--steps 2 --frames 4 --noise 0.3", "--steps 2 --frames 8 --size 48x48 --fit pad",
    "--steps 2 --frames 8 --size 80x48 --fit stretch --noise 0.2", "--steps 2 --model tiny-base",
    "--steps 2 --frames 8 --model tiny-base --lora {lora} --lora-scale 0.7")
"""Of `extend` and `transition`, likewise."""
KEPT = (3, 7, 10, 11)
"""The settings of the clips that --keep makes of each task: both solvers, several fits, and three models."""
GENERATED = {
    "text-to-video": ("",),
    "image-to-video": ("--image {a}", "--image {photo}", "--keyframe {b}@0", "--image_paths {a} --cond_position 0"),
    "last-frame": ("--last-image {b}", "--keyframe {photo}@-1", "--image_paths {b} --cond_position -1"),
    "start-end": ("--image {a} --last-image {b}", "--image_paths {a} {b} --cond_position 0,-1",
                  "--image {photo} --keyframe {b}@-1,noise=0.1"),
    "keyframes": ("--keyframe {a}@0 --keyframe {b}@8", "--keyframe {a}@0.5s --keyframe {photo}@-1",
                  "--image_paths {a} {b} {photo} --cond_position 0,1,2 --noise_multipliers 0,0.2,0.5"),
    "video-parts": ("--video {short}@-1,start=-4", "--video {short},start=4,frames=5",
                    "--video {long}@5,start=2,frames=4", "--video {plain},start=1.0s,frames=5 --last-image {a}"),
    "completion": ("--video {long},frames=1 --video {short}@-1,start=-4",
                   "--video {plain},frames=1 --video {long}@-1,start=8,frames=4",
                   "--video {short},frames=5 --video {broad}@-1,start=-4,noise=0.2"),
    "editing": ("--edit {short} --strength 0.6", "--edit {long},start=8,frames=9 --strength 0.3",
                "--edit {long} --image {a} --strength 0.9"),
    "noise": ("--image {a} --noise 0.2", "--keyframe {b}@8,noise=0.4 --image {a}",
              "--image_paths {a} {b} --cond_position 0,2 --noise_multipliers 0.2,0.5",
              "--video {short} --cond_position 0,1 --noise_multipliers 0,0.3", "--video {plain},frames=5,noise=0.3")}
"""What the clips of a task are given, in turn; the words in braces are files of `draw_inputs`."""
LENGTHENED = {
    "extension": ("extend {long} {prompt}", "extend {plain} {prompt}", "extend {broad} {prompt}"),
    "backward-extension": ("extend {short} {prompt} --backward", "extend {plain} {prompt} --backward"),
    "transition": ("transition {short} {long} {prompt}", "transition {plain} {short} {prompt}",
                   "transition {broad} {plain} {prompt}")}
LINES: tuple[dict[str, Any], ...] = (
    {}, {"image": "a.png"}, {"last_image": "b.png", "fit": "pad"}, {"keyframe": ["b.png@8,noise=0.2"]},
    {"video": "short.mp4@-1,start=-4"}, {"edit": "long.mp4", "strength": 0.5}, {"solver": "dpm++2m"},
    {"size": "48x48", "frames": 9}, {"guidance": 1.0, "shift": 5.0}, {"steps": 3, "negative_prompt": "blurred"})
"""Of a batch."""
TRAINING = ("--preset tiny --data.held_out 1 --train.batch 4 --train.schedule constant --save.every 2 "
            "--validate.every 10 --validate.sigmas 0.4,0.9 --json")
RUNS = {"whole": ("--train.steps 20",), "resumed": ("--train.steps 10", "--train.steps 20 --force"),
        "tasks": ("--train.steps 12 --sigma.pattern tasks --train.ema post-hoc --save.keep none",),
        "full": ("--train.steps 4 --lora null --train.lr 1e-4",)}
"""The commands of each training; several go on with the same one."""
EXPORTS = {f"{to}{less.replace('-', '')}": ("{lora}", f"--to {to}{less}")
           for to in ("comfy", "diffusers", "kohya") for less in ("", " --rank 4", " --dtype bfloat16")}
EXPORTS |= {"merged": ("{lora}", "--to merged --model tiny-base --scale 0.7"),
            "merged rank 4": ("{lora}", "--to merged --model tiny-base --rank 4 --dtype float32"),
            "run": ("{runs}/whole", "--to kohya"), "average": ("{runs}/tasks", "--to comfy --ema 0.15")}
"""What is exported, and how."""
WORLD = "--tasks extension camera --scenes 2 --steps 2"
"""The options of the benchmark of the embedded model on the synthetic world."""
# fmt: on


def draw_pictures(folder: Path) -> None:
    """Two pictures of a clip's shape, a and b, and one of another, photo."""
    for seed, (name, size) in enumerate({"a": (64, 64), "b": (64, 64), "photo": (150, 90)}.items()):
        rough = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC)
        ImageDraw.Draw(picture).ellipse((10 + 12 * seed, 20, 34 + 12 * seed, 44), fill=(225, 40 + 80 * seed, 40))
        picture.save(folder / f"{name}.png")


def draw_lora(file: Path) -> None:
    """A LoRA of rank 8 for the embedded model, under ComfyUI's names."""
    random = torch.Generator().manual_seed(0)
    layers = {**{f"self_attn.{part}": (192, 192) for part in "qkvo"}, "ffn.0": (192, 576), "ffn.2": (576, 192)}
    lora = {}
    for block in range(8):
        for layer, (inside, outside) in layers.items():
            stem = f"diffusion_model.blocks.{block}.{layer}.lora_"
            lora[f"{stem}A.weight"] = torch.randn(8, inside, generator=random) / inside**0.5
            lora[f"{stem}B.weight"] = torch.randn(outside, 8, generator=random) * 0.05
    save_file(lora, file, {"format": "pt"})
