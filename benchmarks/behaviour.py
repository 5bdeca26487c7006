"""Does a change of the code change what pusa does? Hashes of what it makes, to compare two trees of code.

    PYTHONPATH=OLD/src python benchmarks/behaviour.py --out old.json
    PYTHONPATH=NEW/src python benchmarks/behaviour.py --out new.json
    python benchmarks/behaviour.py --compare old.json new.json
    PYTHONPATH=OLD/src python benchmarks/behaviour.py --keep clips       # clips and sidecars, made by the old code
    PYTHONPATH=NEW/src python benchmarks/behaviour.py --remake clips     # made again from their sidecars

A restructuring must not change a bit of any result. The tests cannot show that, because they change with the code. So
this script uses nothing but the command line and runs unchanged on either tree. With the embedded model it makes twelve
clips or more of every task, trainings (one of them stopped and resumed), exports in every dialect, and evaluations. It
draws its own pictures and its own LoRA. `--out` writes a hash of each result: of latents, of tensors without the file's
metadata, or of numbers without times and paths. One thread does everything, because sums of several threads may differ.
Hashes are comparable only on one machine with the same libraries. The exit code is 1 when a command failed or something
differs. The sidecars of `--keep` name their sources and the adapter of `tiny` by absolute paths, so `--remake` needs
that folder, and the old tree, where they were.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # read by torch when it is imported

import behaviour_cases as cases
import torch
from safetensors.torch import load_file

CHANGING = {"seconds", "timing", "estimate", "files"}
"""Keys of what is different at every run."""


class CommandLine:
    """Runs pusa commands in this process, so that a model is loaded once. failed: those that ended with an error."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def run(self, *tokens: str, fine: tuple[int, ...] = (0,), optional: bool = False) -> str | None:
        """What a command prints on stdout; None when its exit code is not `fine`, an error unless `optional`."""
        from pusa.cli import main

        torch.set_num_threads(1)
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as notes:
            code = main(list(tokens))
        if code not in fine and not optional:
            self.failed.append(" ".join(tokens))
            print(f"exit code {code}: {self.failed[-1]}\n{notes.getvalue()}", file=sys.stderr)
        return out.getvalue() if code in fine else None


def hash_of_tensors(place: Path) -> str:
    """Of names, types, shapes and numbers of all tensors in a file or folder, whatever else is there."""
    digest = hashlib.sha256()
    files = sorted(place.rglob("*.safetensors")) if place.is_dir() else [place]
    for file in filter(Path.is_file, files):
        for name, tensor in sorted(load_file(file).items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hash_of_latents(file: Path) -> str:
    """As `result.latents_sha256` of a sidecar."""
    return hashlib.sha256(load_file(file)["latents"].numpy().tobytes()).hexdigest()


def numbers(value: Any) -> Any:
    """A JSON value without its texts, times and paths."""
    if isinstance(value, dict):
        return {key: numbers(one) for key, one in value.items() if key not in CHANGING}
    if isinstance(value, list):
        return [numbers(one) for one in value]
    return None if isinstance(value, str) else value


def hash_of_numbers(value: Any) -> str:
    return hashlib.sha256(json.dumps(numbers(value), sort_keys=True).encode()).hexdigest()


def draw_inputs(command: CommandLine, folder: Path) -> dict[str, str]:
    """Pictures, clips and a LoRA to make clips from, by the names that stand in braces in the cases."""
    folder.mkdir(parents=True)
    cases.draw_pictures(folder)
    clips = {"long": "--frames 33", "short": "--frames 17", "broad": "--size 80x48", "source": "--guidance 2"}
    for seed, (name, settings) in enumerate(clips.items(), 100):
        place = ("--out", str(folder / f"{name}.mp4"), "--seed", str(seed))
        command.run("generate", cases.PROMPTS[seed % 4], "--steps", "3", *settings.split(), *place)
    shutil.copy(folder / "source.mp4", folder / "plain.mp4")  # without its latents, so its pixels are encoded
    cases.draw_lora(folder / "lora.safetensors")
    return {file.stem: str(file) for file in folder.iterdir() if file.suffix != ".json"}


def make_clips(command: CommandLine, folder: Path, chosen: Sequence[int] = range(12)) -> None:
    """The clips of every task with the chosen settings, in a folder for each task, and a batch of twelve."""
    inputs = draw_inputs(command, folder / "inputs")
    tasks = {
        task: ([f"generate {{prompt}} {form}" for form in forms], cases.SETTINGS)
        for task, forms in cases.GENERATED.items()
    }
    tasks |= {task: (list(forms), cases.LONGER) for task, forms in cases.LENGTHENED.items()}
    commands = []
    for place, (task, (forms, settings)) in enumerate(tasks.items()):
        for index in chosen:
            words = f"{forms[index % len(forms)]} {settings[index]} --seed {100 * place + index} --out {{out}}".split()
            told = inputs | {
                "prompt": cases.PROMPTS[(place + index) % 4],
                "out": str(folder / task / f"{index:02d}.mp4"),
            }
            commands.append([word.format(**told) for word in words])
    for tokens in sorted(commands, key=lambda tokens: ("--model" in tokens, "--lora" in tokens)):  # few loads
        command.run(*tokens)
    usual = [
        {"prompt": cases.PROMPTS[index % 4], "seed": index, "name": f"line{index}"} for index in range(len(cases.LINES))
    ]
    objects = [json.dumps(line | own) for line, own in zip(usual, cases.LINES, strict=True)]
    for name, content in (("lines.jsonl", objects), ("lines.txt", cases.PROMPTS[:2])):
        file = folder / "inputs" / name
        file.write_text("\n".join(content), encoding="utf-8")
        command.run("generate", "--prompts", str(file), "--steps", "2", "--out", str(folder / "batch"))


def train(command: CommandLine, room: Path) -> dict[str, str]:
    """Trainings on the clips of text to video. Some of these are too small: `check` says so, and they are left out."""
    data, cache = room / "data", room / "cache"
    data.mkdir()
    for index, clip in enumerate(sorted((room / "clips" / "text-to-video").glob("*.mp4"))):
        shutil.copy(clip, data)
        (data / clip.name).with_suffix(".txt").write_text(cases.PROMPTS[index % 4], encoding="utf-8")
    told = command.run("check", str(data), "--json", fine=(0, 1))
    command.run("prepare", str(data), "--cache", str(cache), fine=(0, 1))
    found = {"training check": hash_of_numbers(json.loads(told or "{}")), "training cache": hash_of_tensors(cache)}
    for name, parts in cases.RUNS.items():
        out = room / "runs" / name
        places = ("--data", str(data), "--data.cache", str(cache), "--out", str(out))
        for part in parts:
            told = command.run("train", *cases.TRAINING.split(), *part.split(), *places)
        found[f"training {name}"] = hash_of_tensors(Path(json.loads(told)["output"]) if told else out)
        for log in sorted(out.glob("*.jsonl")):
            lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
            found[f"training {name} {log.name}"] = hash_of_numbers(lines)
    return found


def export(command: CommandLine, room: Path) -> dict[str, str]:
    """Every dialect of the drawn LoRA and of trained ones, and a clip with each."""
    found: dict[str, str] = {}
    (room / "exports").mkdir()
    lora, runs = room / "clips" / "inputs" / "lora.safetensors", room / "runs"
    for name, (source, flags) in cases.EXPORTS.items():
        out = room / "exports" / (name.replace(" ", "_") + ("" if "merged" in name else ".safetensors"))
        command.run("export", source.format(lora=lora, runs=runs), *flags.split(), "--out", str(out))
        found[f"export {name}"] = hash_of_tensors(out)
        model = ("--model", str(out)) if "merged" in name else ("--model", "tiny-base", "--lora", f"{out}:0.7")
        clip = str(room / "clips" / "export" / f"{name}.mp4")
        command.run("generate", cases.PROMPTS[0], "--steps", "2", "--size", "32x32", *model, "--out", clip)
    return found


def evaluate(command: CommandLine, room: Path) -> dict[str, str]:
    """Clips with given frames, with joins and with a truth; and the embedded model on two tasks of its world."""
    found, clips = {}, room / "clips"
    evaluations = {task: [str(clips / task)] for task in ("image-to-video", "extension")}
    evaluations["truth"] = [str(clips / "inputs" / "short.mp4"), "--truth", str(clips / "inputs" / "plain.mp4")]
    for task, words in evaluations.items():
        told = command.run("evaluate", *words, "--json", "--out", str(room / "scores" / task))
        for index, record in enumerate(json.loads(told or "{}").get("clips", [])):
            found[f"evaluation {task} {index:02d}"] = hash_of_numbers(record)
    settings = [*cases.WORLD.split(), "--json", "--out", str(room / "world")]
    told = command.run("benchmark", "tiny", *settings, optional=True)  # older trees have it under another verb
    told = told or command.run("evaluate", "--world", "tiny", *settings)
    for task, record in json.loads(told or "{}").get("tasks", {}).items():
        found[f"world {task}"] = hash_of_numbers(record)
    return found


def measure(command: CommandLine) -> dict[str, str]:
    """The hash of everything."""
    with tempfile.TemporaryDirectory(prefix="pusa-behaviour-") as name:
        room, started = Path(name).resolve(), time.monotonic()
        make_clips(command, room / "clips")
        found = train(command, room) | export(command, room) | evaluate(command, room)
        for file in sorted((room / "clips").rglob("*.latents.safetensors")):
            found[f"clip {file.parent.name} {file.name.partition('.latents')[0]}"] = hash_of_latents(file)
        print(f"{len(found)} results in {time.monotonic() - started:.0f} s", file=sys.stderr)
    return found


def remake(command: CommandLine, folder: Path) -> list[str]:
    """Make every clip of the folder again from its sidecar, and say which did not come out as recorded."""
    different, sidecars = [], sorted(folder.rglob("*.json"))
    with tempfile.TemporaryDirectory(prefix="pusa-behaviour-") as room:
        for index, sidecar in enumerate(sidecars):
            clip = Path(room) / f"{index}.mp4"
            command.run("generate", "--from", str(sidecar), "--out", str(clip))
            latents = clip.with_suffix(".latents.safetensors")
            recorded = json.loads(sidecar.read_text(encoding="utf-8"))["result"]["latents_sha256"]
            if not latents.is_file() or hash_of_latents(latents) != recorded:
                different.append(f"{sidecar}: another clip")
    print(f"{len(sidecars) - len(different)} of {len(sidecars)} clips came out as recorded", file=sys.stderr)
    return different if sidecars else [f"{folder} holds no sidecar"]


def compare(a: dict[str, str], b: dict[str, str]) -> list[str]:
    """A line for each name that has not the same hash in both."""
    said = {name: "only in the first" if name in a else "only in the second" for name in a.keys() ^ b.keys()}
    said |= {name: "differs" for name in a.keys() & b.keys() if a[name] != b[name]}
    print(f"{len(a.keys() | b.keys()) - len(said)} results are the same, {len(said)} are not", file=sys.stderr)
    return [f"{name}: {what}" for name, what in sorted(said.items())]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="FILE", help="write the hash of every result here")
    what.add_argument("--compare", type=Path, nargs=2, metavar="FILE", help="print what differs between two such files")
    what.add_argument("--keep", type=Path, metavar="FOLDER", help="make some clips of every task here")
    what.add_argument("--remake", type=Path, metavar="FOLDER", help="make those again and compare")
    options = parser.parse_args()
    command, different = CommandLine(), []
    if not options.compare:
        print(f"the code in {Path(find_spec('pusa').origin).parent}", file=sys.stderr)
    if options.compare:
        different = compare(*(json.loads(file.read_text(encoding="utf-8")) for file in options.compare))
    elif options.keep:
        make_clips(command, options.keep.resolve(), cases.KEPT)
    elif options.remake:
        different = remake(command, options.remake.resolve())
    else:
        options.out.write_text(json.dumps(measure(command), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(*different, sep="\n", end="\n" if different else "")
    return int(bool(different or command.failed))


if __name__ == "__main__":
    sys.exit(main())
