"""What test_ranks.py compares: command lines and calls, made by one process there and by two here.

torchrun --nproc-per-node 2 -m tests.cli.shared.ranks_worker FOLDER
torchrun --nproc-per-node 2 -m tests.cli.shared.ranks_worker TROUBLE RANK
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from pusa.cli import main
from pusa.core.sampler import Step
from pusa.errors import InputError, PusaError
from pusa.generation.given import Image
from pusa.generation.pipeline import Pipeline, load
from pusa.models.wan.transformer import FrameIndex
from pusa.processes import ProcessGroup, current_group, join

PROMPT = "a red circle moves left on a black background"
SMALL = ["--model", "model", "--steps", "4"]
COMMANDS = {
    "image": ["generate", PROMPT, "--image", "photo.png", "--steps", "5"],
    "accelerated": ["generate", PROMPT, "--image", "photo.png", "--steps", "8", "--accelerate", "steps,threshold=0.3"],
    "loosely": ["generate", PROMPT, "--image", "photo.png", "--last-image", "photo.png", "--noise", "0.4",
                "--solver", "dpm++2m", *SMALL],
    "text": ["generate", PROMPT, "--guidance", "1", *SMALL],
    "lora": ["generate", PROMPT, "--lora", "style.safetensors:0.7", "--guidance", "3", *SMALL],
    "edit": ["generate", PROMPT, "--edit", "clip.mp4", *SMALL],
    "extended": ["extend", "clip.mp4", PROMPT, "--frames", "12", "--overlap", "5", *SMALL],
    "joined": ["transition", "clip.mp4", "clip.mp4", PROMPT, "--frames", "8", "--overlap", "5", *SMALL],
    "fp8": ["generate", PROMPT, "--image", "photo.png", "--memory", "24gb", *SMALL],
    "disk": ["generate", PROMPT, "--image", "photo.png", "--lora", "style.safetensors", "--memory", "8gb", *SMALL],
}  # fmt: skip
"""{the clip's name: what makes it}: five latent frames, so that two processes share the third."""


def run(name: str, out: str) -> int:
    return main([*COMMANDS[name], "--out", f"{out}/{name}.mp4"])


def calls(share: bool) -> dict[str, Tensor]:
    """Latents made through the Python door."""
    made = {}
    pipe = load("model", share_tokens=share)
    made["without"] = sample(pipe)
    pipe.load_lora("whole.safetensors", 0.5)  # also of the last layer, where the tokens are put together again
    made["late LoRA"] = sample(pipe)
    pipe.set_lora("whole", 1.0)
    made["stronger"] = sample(pipe)
    pipe.remove_lora("whole")
    made["removed"] = sample(pipe)
    made["experts"] = sample(load("experts", share_tokens=share), boundary=0.875)
    return made


def sample(pipe: Pipeline, **options: Any) -> Tensor:
    return pipe.generate(PROMPT, [Image("photo.png")], steps=4, seed=3, **options).latents


def only_together(group: ProcessGroup) -> dict[str, Any]:
    """What has no counterpart in one process, as JSON."""
    pipe = load("tiny", share_tokens=True)
    lengths: list[int] = []
    hook = pipe.transformer.blocks[3].norm1.register_forward_hook(lambda _m, x, _y: lengths.append(x[0].shape[1]))
    right = sample(pipe)
    hook.remove()
    frames_of = FrameIndex.forward

    def of_the_other_share(self: FrameIndex, frames: int, each: int, device: torch.device) -> Tensor:
        return frames_of(self, frames, each, device).roll(frames * each // 2, dims=1)

    with patch.object(FrameIndex, "forward", of_the_other_share):
        wrong = sample(load("tiny", share_tokens=True))
    seen: list[int] = []

    def stop(step: Step) -> bool:
        seen.append(step.index)
        return not (group.rank == 1 and step.index == 1)

    return {
        "tokens": sorted(set(lengths)),
        "wrong frames": (wrong - right).abs().max().item(),
        "other seeds": said(lambda: pipe.generate(PROMPT, seed=group.rank)),
        "stopped": said(lambda: pipe.generate(PROMPT, callback=stop)),
        "steps": seen,
        "odd": said(lambda: pipe.generate(PROMPT, frames=17, size=(16, 80))),
    }


def said(call: Any) -> str:
    try:
        call()
    except PusaError as error:
        return str(error)
    return "nothing"


def together(out: Path) -> None:
    with join() as group:
        codes = {name: run(name, "together") for name in COMMANDS}
        codes["again"] = main(["generate", "--from", "together/image.json", "--out", "together/again.mp4"])
        codes["refused"] = main(["generate", PROMPT, "--frames", "17", "--size", "16x80"])
        torch.save(calls(share=True), out / f"calls.{group.rank}.pt")
        (out / f"{group.rank}.json").write_text(json.dumps({"codes": codes, **only_together(current_group())}))


def troubled(trouble: str, rank: int) -> int:
    """Make a clip, with trouble for one process at its third step."""
    predict, asked = Pipeline._predict, 0

    def troubling(self: Pipeline, *args: Any) -> Tensor:
        nonlocal asked
        asked += 1
        if asked == 3 and os.environ["RANK"] == str(rank):
            if trouble == "error":
                raise InputError("this process has trouble; help it.")
            os.kill(os.getpid(), {"interrupt": signal.SIGINT, "kill": signal.SIGKILL}[trouble])
        return predict(self, *args)

    with patch.object(Pipeline, "_predict", troubling):
        return main(["generate", PROMPT, "--out", "troubled.mp4", *SMALL])


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) == 2:
        together(Path(sys.argv[1]))
    else:
        sys.exit(troubled(sys.argv[1], int(sys.argv[2])))
