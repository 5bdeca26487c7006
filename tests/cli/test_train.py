"""`pusa train` from the command line to the trainer's door, and once through it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pusa.cli import VERBS, main
from pusa.cli.shared.setting_options import settings as settings_of_help
from pusa.training.config.presets import PRESETS
from pusa.training.config.tree import SECTIONS, Config, read

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Run a command line: (exit code, stdout, stderr)."""
    monkeypatch.delenv("RANK", raising=False)

    def run(*tokens: str) -> tuple[int, str, str]:
        code = main(["train", *tokens])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the verb hands to `training.run.run`, which does nothing here. The current folder has a folder clips."""
    import pusa.training.run as room
    from pusa.training.trainer import Result

    seen: dict[str, Any] = {}

    def run(config: Config, out: Path, *, resume_from: Path | None, force: bool, terminal: Any) -> room.Outcome:
        seen.update(config=config, out=out, resume_from=resume_from, force=force, verbose=terminal.verbose)
        return room.Outcome(Result(out, out / "lora.safetensors", 0, config.train.steps, 0.25, ()), 9, 1, ())

    monkeypatch.setattr(room, "run", run)
    (tmp_path / "clips").mkdir()
    monkeypatch.chdir(tmp_path)
    return seen


def test_every_setting_is_an_option_with_its_default() -> None:
    told = {(each.section, each.name): each for each in settings_of_help()}
    assert set(told) == {(section, name) for section, kind in SECTIONS.items() for name in kind.model_fields}
    for (section, name), each in told.items():
        assert each.help
        field = SECTIONS[section].model_fields[name]
        if each.default is not None:
            assert read(None, None, {f"{section}.{name}": each.default}) == Config()
        else:
            assert field.default is None or isinstance(field.default, list | dict)


def test_the_shortest_run_reaches_the_trainer(ask: Ask, asked: dict[str, Any]) -> None:
    code, out, _ = ask(
        "--preset", "tiny", "--data", "clips", "--out", "runs/x", "--train.steps", "20", "--train.seed", "3"
    )
    assert (code, out) == (0, "runs/x/lora.safetensors\n")
    assert asked["config"] == read(None, "tiny", {"data.path": "clips", "train.steps": 20, "train.seed": 3})
    assert (asked["out"], asked["force"], asked["verbose"]) == (Path("runs/x"), False, True)
    assert asked["resume_from"] is None
    assert ask("--data", "clips", "--resume-from", "runs/x/checkpoints/step_000010", "--out", "runs/y")[0] == 0
    assert (asked["out"], asked["resume_from"]) == (Path("runs/y"), Path("runs/x/checkpoints/step_000010"))


def test_a_file_a_preset_and_options_together(ask: Ask, asked: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: {path: clips}\ntrain: {lr: 3e-4, batch: 7}\n")
    code, out, _ = ask(str(file), "--preset", "tiny", "--train.lr=1e-4", "--lora", "null", "--force", "--json")
    assert code == 0
    config = asked["config"]
    assert (config.train.lr, config.train.batch, config.lora) == (1e-4, 7, None)
    assert config.train.steps == PRESETS["tiny"].config["train"]["steps"]
    assert (asked["force"], asked["verbose"]) == (True, False)
    record = json.loads(out)
    assert record["folder"] == str(Path("runs") / "mine")
    assert (record["steps"], record["loss"], record["samples"], record["held_out"]) == (config.train.steps, 0.25, 9, 1)


def test_other_processes_say_nothing(ask: Ask, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert ask("--data", "clips") == (0, "", "")
    assert asked["verbose"] is False


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        (["--train.lrr", "1"], "pusa train has no option --train.lrr; did you mean --train.lr?"),
        (["--data", "x", "--train.lr", "fast"], 'train.lr is "fast" (the command line); give a number above 0.'),
        (["--data", "x", "--preset", "tinny"], "There is no preset 'tinny'; did you mean tiny?"),
        (["--preset", "tiny", "--preset", "paper"], "--preset is given more than once; give it once."),
        (["none.yaml"], "There is no settings file none.yaml; check the name."),
        (["--preset", "tiny"], "There are no clips to train on; give --data DIR, or data.path in the settings."),
        (["--data", "a", "--data.path", "b"],
         "--data and --data.path are the same option and have different values; give one of them."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_is_loaded(ask: Ask, tokens: list[str], sentence: str) -> None:
    code, out, err = ask(*tokens)
    assert (code, out, err) == (2, "", f"pusa: {sentence}\n")


def test_presets_are_listed_with_what_they_cost(ask: Ask) -> None:
    code, out, _ = ask("--presets")
    assert code == 0
    for name, preset in PRESETS.items():
        assert any(line.startswith(f"{name} ") and preset.note in line for line in out.splitlines())
        assert f"{preset.memory}; {preset.time}" in out
    code, out, _ = ask("--presets", "--json")
    assert set(json.loads(out)["presets"]) == set(PRESETS)


def test_the_verb_is_registered() -> None:
    assert "train" in VERBS


# -------------------------------------------------------------------------------------------------- through the door


@pytest.fixture
def clips(tmp_path: Path, noise_frames: Callable[..., Any]) -> Path:
    from pusa.media.videos import write_video

    folder = tmp_path / "clips"
    folder.mkdir()
    for seed in range(5):
        write_video(folder / f"{seed}.mp4", noise_frames(17, seed), 8)
        (folder / f"{seed}.txt").write_text("a red circle moves left")
    (folder / "broken.mp4").write_bytes(b"no video at all")
    (folder / "broken.txt").write_text("a blue square")
    return folder


def test_from_clips_to_an_adapter_and_on(ask: Ask, clips: Path, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    common = ["--data", str(clips), "--out", str(out), "--model.source", str(tiny_folder), "--data.cache",
              str(tmp_path / "cache"), "--data.held_out", "1", "--lora.rank", "2", "--save.every", "2"]  # fmt: skip
    code, said, err = ask(*common, "--train.steps", "2")
    assert (code, said) == (0, f"{out / 'lora.safetensors'}\n"), err
    assert "broken.mp4" in err
    assert (out / "lora.safetensors").is_file()
    assert read(out / "config.yaml", None, {}).model.source == str(tiny_folder)
    assert [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()] == [1, 2]
    assert json.loads((out / "validation.jsonl").read_text().splitlines()[-1])["clips"] == 1

    assert (out / "README.md").is_file()
    assert json.loads((out / "cost.json").read_text())["steps"] == 2

    code, said, _ = ask(*common, "--train.steps", "3", "--json")
    record = json.loads(said)
    assert (code, record["first"], record["steps"], record["samples"], record["held_out"]) == (0, 2, 3, 4, 1)
    assert [unused["kind"] for unused in record["unused"]] == ["unreadable"]

    code, _, err = ask(*common, "--train.steps", "4", "--train.lr", "1")
    assert code == 2
    assert "train.lr" in err


@pytest.fixture
def common(clips: Path, tiny_folder: Path, tmp_path: Path) -> list[str]:
    """A training of six steps on four clips."""
    return ["--data", str(clips), "--out", str(tmp_path / "run"), "--model.source", str(tiny_folder), "--data.cache",
            str(tmp_path / "cache"), "--data.held_out", "1", "--lora.rank", "2", "--train.steps", "6",
            "--validate.every", "0", "--preview.every", "0"]  # fmt: skip


def changed(tokens: list[str], **values: str) -> list[str]:
    """A command line with other values of some flags: an empty value removes the flag."""
    pairs = dict(zip(tokens[::2], tokens[1::2], strict=True)) | {f"--{key}": value for key, value in values.items()}
    return [token for flag, value in pairs.items() if value for token in (flag, value)]


def test_little_memory_and_a_lora_trained_further(ask: Ask, common: list[str], tmp_path: Path) -> None:
    first, second = tmp_path / "run", tmp_path / "second"
    previews = {"preview.every": "1", "preview.tasks": "text-to-video", "preview.steps": "1"}
    memory = {"memory": "24gb", "memory.swap": "1", "train.steps": "1"}
    code, _, err = ask(*changed(common, **previews, **memory))
    assert code == 0, err
    assert (first / "previews" / "step_000001" / "sheet.png").is_file()
    config = read(first / "config.yaml", None, {})
    assert (config.memory.base, config.memory.swap, config.train.precision) == ("fp8", 1, "bf16")

    further = {"lora.rank": "", "lora.init": str(first / "lora.safetensors"), "memory.base": "int8"}
    code, out, err = ask(*changed(common, out=str(second), **further, **{"train.steps": "2"}))
    assert (code, out) == (0, f"{second / 'lora.safetensors'}\n"), err
    lora = read(second / "config.yaml", None, {}).lora
    assert lora is not None
    assert (lora.rank, lora.init) == (2, str(first / "lora.safetensors"))


def test_ctrl_c_leaves_a_checkpoint(
    ask: Ask, common: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pusa.training.tracking import Tracker

    step = Tracker.step

    def interrupted(self: Tracker, record: dict[str, Any]) -> None:
        step(self, record)
        if record["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "step", interrupted)
        code, out, err = ask(*common)
    sentence = "pusa: interrupted after step 2 of 6, and a checkpoint is written; rerun the command to resume."
    assert (code, out, err.splitlines()[-1]) == (130, "", sentence)
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["step_000002"]
    code, out, _ = ask(*common, "--json")
    assert (code, json.loads(out)["first"]) == (0, 2)


def test_folders_variants_and_a_validation_set_train_and_resume(
    ask: Ask, common: list[str], clips: Path, tmp_path: Path, noise_frames: Callable[..., Any]
) -> None:
    from pusa.media.videos import write_video

    for name, seeds in (("more", (10, 11)), ("apart", (20,))):
        (tmp_path / name).mkdir()
        for seed in seeds:
            write_video(tmp_path / name / f"{seed}.mp4", noise_frames(17, seed, (48, 32)), 8)
            (tmp_path / name / f"{seed}.txt").write_text("a blue square\na green square\n")
    (clips / "0.txt").unlink()
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"data:\n  folders:\n  - {{path: {clips}, prefix: sks}}\n  - {{path: {tmp_path / 'more'}, repeats: 3}}\n"
        f"  validation: {tmp_path / 'apart'}\n  captions: variants\n  uncaptioned: true\n  buckets: auto\n"
    )
    steps = common.index("--train.steps") + 1
    options = [str(file), *common[2:]]
    held = options.index("--data.held_out")
    del options[held : held + 2]
    steps = options.index("--train.steps") + 1
    validating = options.index("--validate.every") + 1
    out = options.index("--out") + 1
    options[steps], options[validating] = "4", "4"
    code, said, err = ask(*options, "--json")
    record = json.loads(said)
    assert code == 0, err
    assert (record["samples"], record["held_out"]) == (5 + 2 * 3, 1)
    listed = json.loads((tmp_path / "run/clips.json").read_text())["clips"]
    assert {(Path(clip["path"]).name, *clip["captions"]) for clip in listed} == {
        ("0.mp4", "sks"), *((f"{seed}.mp4", "sks a red circle moves left") for seed in range(1, 5)),
        *((f"{seed}.mp4", "a blue square", "a green square") for seed in (10, 11, 20)),
    }  # fmt: skip
    options[out], options[steps] = str(tmp_path / "again"), "2"
    assert ask(*options)[0] == 0
    options[steps] = "4"
    assert ask(*options)[0] == 0
    first, again = (
        [json.loads(line) for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]
        for run in ("run", "again")
    )
    assert [line["loss"] for line in again] == pytest.approx([line["loss"] for line in first], rel=1e-5)
    assert [line["step"] for line in again] == [1, 2, 3, 4]
    shutil.copy(tmp_path / "more/10.mp4", tmp_path / "apart/10.mp4")
    (tmp_path / "apart/10.txt").write_text("again")
    code, _, err = ask(*options)
    assert code == 2
    assert err.splitlines()[-1] == (
        f"pusa: {tmp_path / 'apart/10.mp4'} is in data.validation and, as {tmp_path / 'more/10.mp4'}, among the clips "
        "to train on; remove it from one of them."
    )


def test_clips_that_make_it_diverge_are_named_by_their_files(ask: Ask, common: list[str], clips: Path) -> None:
    code, _, err = ask(*common, "--train.lr", "1e30")
    assert code == 2
    names = re.findall(r"no finite loss or gradient on (.*) \(a red circle moves left\):", err)
    assert len(names) == 1
    assert Path(names[0]).parent == clips
    code, _, err = ask(*common, "--train.lr", "1e30", "--train.accumulate", "64", "--force")
    assert code == 2
    named = re.findall(r"[^ ]+ \(a red circle moves left\)", err)
    assert 1 <= len(named) == len({*named}) <= 4


@pytest.mark.parametrize("place", ["/proc/nope", "FILE", "FILE/deeper"])
def test_a_folder_that_cannot_be_is_refused_before_anything_is_encoded(
    ask: Ask, common: list[str], place: str, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pusa.models.loading.checkpoints.load", lambda *_, **__: pytest.fail("weights were loaded"))
    place = place.replace("FILE", str(clips / "0.txt"))
    for flag, what in (("--out", "the run"), ("--data.cache", "the cache")):
        common[common.index(flag) + 1] = place
        code, _, err = ask(*common)
        assert code == 2
        assert f"cannot write {what} into {place}: " in err
        assert "choose another folder" in err
        assert "Errno" not in err


def test_a_picture_for_previews_that_cannot_be_read_is_said_before_anything_is_encoded(
    ask: Ask, common: list[str], clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pusa.models.loading.checkpoints.load", lambda *_, **__: pytest.fail("weights were loaded"))
    common[common.index("--preview.every") + 1] = "2"
    options = ["--preview.prompts", "a cat", "--preview.pictures", str(clips / "broken.mp4")]
    code, _, err = ask(*common, *options)
    assert code == 2
    assert "broken.mp4" in err.splitlines()[-1]


def test_previews_without_anything_to_show_are_refused_before_anything_is_encoded(
    ask: Ask, common: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pusa.models.loading.checkpoints.load", lambda *_, **__: pytest.fail("weights were loaded"))
    common[common.index("--preview.every") + 1] = "2"
    common[common.index("--data.held_out") + 1] = "0"
    code, _, err = ask(*common)
    assert code == 2
    assert err.splitlines()[-1].startswith(
        "pusa: Previews need held-out clips, and there are none: set data.held_out to"
    )


def test_a_missing_logger_is_said_before_anything_is_encoded(
    ask: Ask, common: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pusa.models.loading.checkpoints.load", lambda *_, **__: pytest.fail("weights were loaded"))
    monkeypatch.setitem(sys.modules, "wandb", None)
    code, _, err = ask(*common, "--track.loggers", "wandb")
    assert (code, err) == (2, "pusa: wandb is not installed: run pip install wandb, or remove it from track.loggers.\n")


def test_a_result_whose_checkpoints_are_gone_is_not_replaced_in_silence(
    ask: Ask, common: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "lora.safetensors").write_bytes(b"the result")
    code, _, err = ask(*common)
    assert (code, err.splitlines()[-1]) == (
        2,
        f"pusa: {run} has lora.safetensors and no checkpoint, so a training would begin anew and replace it: choose "
        "another folder, or add --overwrite to replace it.",
    )
    assert (run / "lora.safetensors").read_bytes() == b"the result"
    common[common.index("--train.steps") + 1] = "1"
    assert ask(*common, "--overwrite")[0] == 0
    assert (run / "lora.safetensors").read_bytes() != b"the result"


def test_a_folder_in_use_is_refused_before_anything_is_encoded(
    ask: Ask, common: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pusa.training.run_folder import Run

    monkeypatch.setattr("pusa.models.loading.checkpoints.load", lambda *_, **__: pytest.fail("weights were loaded"))
    with Run.open(tmp_path / "run", {}):
        code, _, err = ask(*common)
    assert code == 2
    assert f"run is in use by process {os.getpid()}" in err


def test_a_run_goes_on_with_renamed_clips_and_names_those_that_changed(
    ask: Ask, common: list[str], clips: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    steps = common.index("--train.steps") + 1
    common[steps] = "1"
    assert ask(*common)[0] == 0
    listed = json.loads((run / "clips.json").read_text())["clips"]
    assert sum(clip["held_out"] for clip in listed) == 1
    for path in sorted(clips.glob("?.mp4")):
        for suffix in (".mp4", ".txt"):
            path.with_suffix(suffix).rename(clips / f"z{9 - int(path.stem)}{suffix}")
    common[steps] = "2"
    code, out, err = ask(*common, "--json")
    assert code == 0, err
    assert (json.loads(out)["first"], json.loads(out)["steps"]) == (1, 2)
    again = json.loads((run / "clips.json").read_text())["clips"]
    assert [clip["content"] for clip in again] == [clip["content"] for clip in listed]
    assert {Path(clip["path"]).name for clip in again} == {f"z{9 - seed}.mp4" for seed in range(5)}

    learnt = [Path(clip["path"]) for clip in again if not clip["held_out"]]
    learnt[0].with_suffix(".txt").write_text("a blue square")
    learnt[1].unlink()
    common[steps] = "3"
    code, _, err = ask(*common)
    assert code == 2
    assert err.splitlines()[-1] == (
        f"pusa: {run} was trained on other clips ({learnt[1]} is gone; the caption of {learnt[0]} was 'a red circle "
        "moves left' and is 'a blue square'): restore them, choose another --out, or add --overwrite to go on with the "
        "present clips."
    )
    assert ask(*common, "--overwrite")[0] == 0
    last = json.loads((run / "clips.json").read_text())["clips"]
    assert [(clip["content"], clip["held_out"]) for clip in last] == [(c["content"], c["held_out"]) for c in again]
