"""The verbs, run like the console command, on a random model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pusa.cli import main, run
from pusa.cli.shared.terminal import Terminal, pace
from pusa.generation.clip import GeneratedClip
from pusa.generation.pipeline import Pipeline
from pusa.media.images import Frames, fit, write_image
from pusa.media.videos import read_every_frame, read_video, write_video
from pusa.models.loading.presets import named

Pusa = Callable[..., dict[str, Any]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a picture and a clip in it."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (21, 40, 40, 3), np.uint8)
    write_image("a.png", noise[0])
    write_video("clip.mp4", noise, 8)
    return tmp_path


@pytest.fixture
def pusa(folder: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> Pusa:
    """Run a command line with --json; returns its JSON with the exit code."""

    def call(*tokens: str) -> dict[str, Any]:
        model = [] if "--from" in tokens else ["--model", str(tiny_folder)]
        code = main([*tokens, *model, "--json"])
        captured = capsys.readouterr()
        return {"code": code, "stderr": captured.err, **json.loads(captured.out)}

    return call


def recipe(result: dict[str, Any]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(Path(result["clips"][0]["sidecar"]).read_text())
    return loaded


def columns(result: dict[str, Any]) -> list[float]:
    """How noisy each latent frame starts, relative to the noisiest."""
    state = np.array(recipe(result)["matrix"]["sigma"])[0]
    return [float(x) for x in (state / state.max()).round(6)]


def latents(clip: str) -> Tensor:
    return load_file(Path(clip).with_suffix(".latents.safetensors"))["latents"]


def assert_refused(result: dict[str, Any], *words: str) -> None:
    message = result["error"]["message"]
    assert result["code"] == result["error"]["exit_code"] == 2, message
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert "Traceback" not in result["stderr"]


def test_text_to_video_lands_in_outputs_under_its_own_name(pusa: Pusa) -> None:
    result = pusa("generate", "A red circle!", "--seed", "3")
    assert result["code"] == 0
    (clip,) = result["clips"]
    assert clip["path"] == "outputs/a-red-circle_3_32x32x17.mp4"
    assert (clip["seed"], clip["frames"], clip["size"], clip["fps"]) == (3, 17, [32, 32], 8)
    frames, fps = read_video(clip["path"])
    assert frames.shape == (17, 32, 32, 3)
    assert fps == 8
    assert columns(result) == [1, 1, 1, 1, 1]


def test_pictures_stand_at_their_frames_with_their_noise(pusa: Pusa) -> None:
    result = pusa(
        *("generate", "x", "--image", "a.png", "--keyframe", "a.png@1s,noise=0.25", "--last-image", "a.png"),
        *("--noise", "0.5"),
    )
    assert columns(result) == [0.5, 1, 0.25, 1, 0.5]


def test_a_video_with_a_negative_frame_ends_there(pusa: Pusa) -> None:
    result = pusa("generate", "x", "--video", "clip.mp4,frames=5", "--video", "clip.mp4@-1,start=-4")
    assert columns(result) == [0, 0, 1, 1, 0]
    assert [(c["at"], c["start"], c["frames"]) for c in recipe(result)["conditions"]] == [(0, 0, 5), (13, 17, 4)]
    assert_refused(pusa("generate", "y", "--video", "clip.mp4@-1"), "21 frames", "before")


def test_the_flags_of_the_official_scripts_count_latent_frames(pusa: Pusa) -> None:
    result = pusa(
        *("generate", "--prompt", "x", "--image_paths", "a.png", "a.png"),
        *("--cond_position", "0,3", "--noise_multipliers", "0.2,0.5"),
    )
    assert columns(result) == [0.2, 1, 1, 0.5, 1]
    assert {c["encoding"] for c in recipe(result)["conditions"]} == {"single"}
    video = pusa("generate", "y", "--video_path", "clip.mp4", "--cond_position", "0,2", "--noise_multipliers", "0,0.3")
    assert columns(video) == [0, 1, 0.3, 1, 1]
    last = pusa("generate", "z", "--image_paths", "a.png", "--cond_position", "-1")
    assert columns(last) == [1, 1, 1, 1, 0]


def test_the_official_flags_take_every_frame_of_a_video(pusa: Pusa, tiny_pipe: Pipeline) -> None:
    """A clip of 24 frames per second, and one of variable rate: frame k of the file is frame k of the clip."""
    frames, _ = read_video("clip.mp4")
    write_video("fast.mp4", frames, 24)
    stored, _ = read_video("fast.mp4")
    write_unevenly("uneven.mp4", frames)
    for file, every in (("fast.mp4", stored), ("uneven.mp4", read_every_frame("uneven.mp4"))):
        assert len(every) == 21
        made = pusa("generate", "y", "--video_path", file, "--cond_position", "0,1,2", "--out", f"{file}.out.mp4")
        assert recipe(made)["conditions"][0]["rate"] == "file"
        given = tiny_pipe.encode(fit(every[:9], (32, 32)))
        assert torch.equal(latents(made["clips"][0]["path"])[:, :, :3], given)
        again = pusa("generate", "--from", made["clips"][0]["sidecar"], "--out", f"{file}.again.mp4")
        assert latents(again["clips"][0]["path"]).equal(latents(made["clips"][0]["path"]))
        plain = pusa("generate", "y", "--video", f"{file},frames=5", "--out", f"{file}.plain.mp4")
        assert not torch.equal(latents(plain["clips"][0]["path"])[:, :, :2], given[:, :, :2])
    assert_refused(pusa("generate", "y", "--video_path", "fast.mp4", "--cond_position", "0,6"), "21 in all")


def write_unevenly(path: str, frames: Frames) -> None:
    """A video whose frames are shown for different times."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 40, 40, "yuv420p", Fraction(1, 240)
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = 8 * i + (20 * i * i) // 40, Fraction(1, 240)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_a_preset_gives_its_negative_prompt_and_a_typed_one_wins(pusa: Pusa) -> None:
    save_file({"blocks.0.self_attn.q.lora_A.weight": torch.zeros(2, 32),
               "blocks.0.self_attn.q.lora_B.weight": torch.zeros(32, 2)}, "pusa.safetensors")  # fmt: skip
    options = ("--preset", "pusa-wan21", "--lora", "pusa.safetensors", "--steps", "1", "--frames", "5")
    said = {
        name: recipe(pusa("generate", "x", *options, *more, "--out", f"{name}.mp4"))["negative_prompt"]
        for name, more in {
            "preset": (),
            "empty": ("--negative-prompt", ""),
            "own": ("--negative_prompt", "blue"),
        }.items()
    }
    assert said == {"preset": named("pusa-wan21").negative_prompt, "empty": "", "own": "blue"}
    assert not latents("preset.mp4").equal(latents("empty.mp4"))


def test_sampling_flags_and_their_habitual_names_reach_the_sampler(pusa: Pusa) -> None:
    made = recipe(
        pusa(
            *("generate", "x", "--num_inference_steps", "3", "--cfg", "1.5", "--flow_shift", "2", "--height", "32"),
            *("--width", "48", "--num_frames", "9", "--negative_prompt", "grey", "--solver", "dpm++2m", "--fit", "pad"),
        )
    )
    assert (made["steps"], made["guidance"], made["shift"], made["size"]) == (3, 1.5, 2.0, [48, 32])
    assert (made["frames"], made["negative_prompt"], made["solver"], made["fit"]) == (9, "grey", "dpm++2m", "pad")


def test_editing_starts_part_of_the_way(pusa: Pusa) -> None:
    result = pusa("generate", "x", "--edit", "clip.mp4,frames=9", "--strength", "0.5", "--shift", "1")
    made = recipe(result)
    assert made["init"]["frames"] == made["frames"] == 9
    assert made["matrix"]["sigma"][0] == [0.5, 0.5, 0.5]
    assert_refused(pusa("generate", "x", "--strength", "0.5"), "--edit")


def test_several_clips_have_consecutive_seeds(pusa: Pusa) -> None:
    result = pusa("generate", "x", "--count", "2", "--seed", "7", "--out", "made/y.mp4")
    assert [(clip["path"], clip["seed"]) for clip in result["clips"]] == [("made/y_7.mp4", 7), ("made/y_8.mp4", 8)]
    alone = pusa("generate", "x", "--seed", "8", "--out", "made/alone.mp4")
    assert alone["clips"][0]["seed"] == 8
    assert latents("made/alone.mp4").equal(latents("made/y_8.mp4"))
    assert not latents("made/alone.mp4").equal(latents("made/y_7.mp4"))


def test_one_of_several_clips_may_fail(pusa: Pusa, monkeypatch: pytest.MonkeyPatch) -> None:
    from pusa.generation.pipeline import Pipeline

    decode = Pipeline.decode

    def fail_once(pipe: Pipeline, z: Tensor) -> Any:
        monkeypatch.setattr(Pipeline, "decode", decode)
        raise RuntimeError("a bad moment")

    monkeypatch.setattr(Pipeline, "decode", fail_once)
    result = pusa("generate", "a", "--count", "2", "--frames", "5", "--steps", "1", "--out", "x.mp4")
    assert result["code"] == 1
    assert [one["path"] for one in result["clips"]] == ["x_1.mp4"]
    assert result["failed"][0]["path"] == "x_0.mp4"
    assert "a bad moment" in result["failed"][0]["reason"]


def test_a_sidecar_makes_its_clip_again(pusa: Pusa) -> None:
    pusa("generate", "x", "--image", "a.png", "--out", "first.mp4")
    again = pusa("generate", "--from", "first.json", "--out", "again.mp4")
    assert again["code"] == 0
    assert latents("again.mp4").equal(latents("first.mp4"))


def test_extension_and_transition_join_clips(pusa: Pusa) -> None:
    pusa("generate", "x", "--out", "a.mp4")
    forward = pusa("extend", "a.mp4", "x", "--frames", "8")
    assert forward["clips"][0]["path"] == "outputs/a_extended_0.mp4"
    assert forward["clips"][0]["frames"] == 25
    backward = pusa("extend", "a.mp4", "x", "--backward", "--overlap", "9", "--frames", "4", "--noise", "0.2")
    assert backward["clips"][0]["frames"] == 21
    assert recipe(backward)["direction"] == "backward"
    joined = pusa("transition", "a.mp4", "a.mp4", "x", "--frames", "4")
    assert joined["clips"][0]["path"] == "outputs/a_to_a_0.mp4"
    assert joined["clips"][0]["frames"] == 17 + 4 + 17 - 1


def test_very_long_empty_and_foreign_prompts_have_usable_names(pusa: Pusa) -> None:
    long = pusa("generate", "very " * 10_000 + "long")["clips"][0]
    assert len(Path(long["path"]).name) < 100
    assert pusa("generate", "")["clips"][0]["path"] == "outputs/clip_0_32x32x17.mp4"
    assert pusa("generate", "猫が伸びをする")["clips"][0]["path"] == "outputs/猫が伸びをする_0_32x32x17.mp4"


def test_nothing_is_overwritten_unless_told(pusa: Pusa) -> None:
    pusa("generate", "x", "--out", "y.mp4")
    before = Path("y.mp4").read_bytes()
    assert_refused(pusa("generate", "x", "--seed", "1", "--out", "y.mp4"), "y.mp4", "--overwrite")
    assert Path("y.mp4").read_bytes() == before
    assert pusa("generate", "x", "--seed", "1", "--out", "y.mp4", "--overwrite")["code"] == 0
    assert Path("y.mp4").read_bytes() != before


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["--image", "none.png"], ["none.png"]),
        (["--image", "clip.mp4"], ["clip.mp4", "video"]),
        (["--image", "empty.png"], ["empty.png"]),
        (["--image", "a.png@3"], ["--keyframe"]),
        (["--keyframe", "a.png"], ["--keyframe", "@8"]),
        (["--keyframe", "a.png@17"], ["17", "frames"]),
        (["--image", "a.png", "--keyframe", "a.png@0"], ["a.png", "same"]),
        (["--keyframe", "a.png@8,noise=1.5"], ["noise"]),
        (["--noise", "nan"], ["--noise"]),
        (["--video", "none.mp4"], ["none.mp4"]),
        (["--video", "a.png"], ["a.png"]),
        (["--edit", "none.mp4"], ["none.mp4"]),
        (["--frames", "80"], ["77", "81"]),
        (["--size", "50x50"], ["50x50", "48x48"]),
        (["--size", "big"], ["--size"]),
        (["--width", "832"], ["--size"]),
        (["--steps", "0"], ["step"]),
        (["--steps", "9" * 20], ["steps", "from 1 to 1000"]),
        (["--noise", "0.3"], ["--noise", "none is given"]),
        (["--noise", "0.3", "--edit", "clip.mp4"], ["--noise", "--strength"]),
        (["--video", "clip.mp4@-1,start=-5"], ["not 5", "frames=4", "start=-4"]),
        (["--video", "clip.mp4@-1,frames=5"], ["not 5", "frames=4 for its first."]),
        (["--video", "clip.mp4@-2,frames=4"], ["-5 or -1"]),
        (["--video", "clip.mp4@-1,frames=3"], ["not 3", "longer"]),
        (["--edit", "clip.mp4,start=-16"], ["16 frames", "frames=13"]),
        (["--image", ""], ["--image", "path is empty"]),
        (["--image_paths", "", "--cond_position", "0"], ["--image_paths", "path is empty"]),
        (["--out", ""], ["--out", "empty path"]),
        (["--from", ""], ["--from", "empty path"]),
        (["--lora", "x.safetensors:nan"], ["--lora", "'nan' is not a finite number"]),
        (["--lora-scale", "inf", "--lora", "x"], ["--lora-scale", "'inf' is not a finite number"]),
        (["--guidance", "nan"], ["guidance"]),
        (["--seed", "-1"], ["seed"]),
        (["--count", "0"], ["--count"]),
        (["--solver", "ddim"], ["--solver", "euler"]),
        (["--lora", "none.safetensors:1.4"], ["none.safetensors"]),
        (["--out", "clip.avi"], [".mp4"]),
        (["--out", "a.png/b.mp4"], ["a.png", "file"]),
        (["--stepz", "3"], ["--stepz", "--steps"]),
        (["--steps", "many"], ["--steps", "many"]),
        (["and", "more"], ["and more", "quotes"]),
        (["--cond_position", "0"], ["--image_paths"]),
        (["--image_paths", "a.png"], ["--cond_position"]),
        (["--image_paths", "a.png", "--cond_position", "0,1"], ["2 positions", "1 pictures"]),
        (["--image_paths", "a.png", "--cond_position", "0", "--noise_multipliers", "0,1"], ["--noise_multipliers"]),
        (["--image_paths", "a.png", "--cond_position", "5"], ["frame"]),
    ],
    ids=lambda x: " ".join(x),
)
def test_wrong_input_is_one_sentence_and_leaves_nothing(pusa: Pusa, tokens: list[str], words: list[str]) -> None:
    Path("empty.png").touch()
    before = sorted(Path().rglob("*"))
    assert_refused(pusa("generate", "x", *tokens), *words)
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("count", ["1.5", "2.0", "1e1", "9" * 200, ""])
@pytest.mark.parametrize(
    ("verb", "flag"),
    [
        *(("generate", flag) for flag in ("--seed", "--frames", "--steps", "--count")),
        *(("extend", flag) for flag in ("--seed", "--frames", "--steps", "--overlap")),
        *(("transition", flag) for flag in ("--seed", "--frames", "--steps", "--overlap")),
    ],
)
def test_what_counts_is_a_whole_number(pusa: Pusa, verb: str, flag: str, count: str) -> None:
    clips = {"generate": [], "extend": ["clip.mp4"], "transition": ["clip.mp4", "clip.mp4"]}[verb]
    assert_refused(pusa(verb, *clips, "x", flag, count), flag, "whole number")


@pytest.mark.parametrize("verb", ["extend", "transition"])
def test_joined_clips_have_the_size_of_the_first(pusa: Pusa, verb: str) -> None:
    write_video("wide.mp4", np.zeros((5, 32, 48, 3), np.uint8), 8)
    for first, size in (("wide.mp4", [48, 32]), ("clip.mp4", [32, 32])):  # clip.mp4 has 40x40, which cannot be made
        clips = [first] if verb == "extend" else [first, "clip.mp4"]
        result = pusa(verb, *clips, "x", "--frames", "4")
        assert result["clips"][0]["size"] == size


def test_the_noise_of_every_condition_reaches_the_flags_of_the_official_scripts(pusa: Pusa) -> None:
    result = pusa("generate", "x", "--image_paths", "a.png", "--cond_position", "0", "--noise", "0.5")
    assert columns(result) == [0.5, 1, 1, 1, 1]


def test_a_prompt_may_start_with_a_dash_behind_two(folder: Path, tiny_folder: Path) -> None:
    assert main(["generate", "--model", str(tiny_folder), "--quiet", "--", "-a prompt"]) == 0
    assert Path("outputs/a-prompt_0_32x32x17.mp4").is_file()


@pytest.mark.parametrize("name", ["x.MP4", "x" * 245 + ".mp4"])
def test_a_name_that_cannot_be_saved_is_refused_before_sampling(
    pusa: Pusa, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("pusa.generation.pipeline.Pipeline.generate", lambda *_, **__: pytest.fail("sampled"))
    result = pusa("generate", "x", "--out", name)
    assert result["error"]["exit_code"] in (1, 2)
    assert "sampled" not in result["error"]["message"]


def test_a_model_that_is_none_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "x", "--model", "tyni"]) == 2
    captured = capsys.readouterr()
    assert "tiny" in captured.err
    assert captured.out == ""


def test_an_unknown_verb_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["genrate", "x"]) == 2
    assert "did you mean generate?" in capsys.readouterr().err


def test_an_interrupted_run_leaves_no_file(pusa: Pusa, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pusa.generation.clip.write_video", interrupt)
    before = sorted(folder.rglob("*"))
    result = pusa("generate", "x", "--out", "y.mp4")
    assert result["code"] == result["error"]["exit_code"] == 130
    assert sorted(folder.rglob("*")) == before


def test_an_unexpected_failure_is_told_without_a_traceback_unless_asked(
    pusa: Pusa, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the disk sang\nand danced")

    monkeypatch.setattr(GeneratedClip, "save", fail)
    result = pusa("generate", "x")
    assert result["code"] == 1
    assert "RuntimeError: the disk sang (" in result["error"]["message"]
    assert "Traceback" not in result["stderr"]
    monkeypatch.setenv("PUSA_DEBUG", "1")
    assert "Traceback" in pusa("generate", "x")["stderr"]
    monkeypatch.setenv("PUSA_DEBUG", "0")
    assert "Traceback" in pusa("generate", "x", "--debug")["stderr"]


def test_stdout_has_the_path_and_stderr_the_rest(
    folder: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "x", "--model", str(tiny_folder), "--out", "loud.mp4"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "loud.mp4\n"
    assert "17 frames of 32x32 at 8 fps" in captured.err
    assert main(["generate", "x", "--model", str(tiny_folder), "--out", "calm.mp4", "--quiet"]) == 0
    assert capsys.readouterr() == ("calm.mp4\n", "")


def test_the_bar_shows_steps_speed_and_time_left_in_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from pusa.core.sampler import Step

    def draw(verbose: bool, tty: bool) -> str:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: tty, raising=False)
        monkeypatch.setenv("FORCE_COLOR" if tty else "NO_COLOR", "1")
        with Terminal(verbose).steps("Sampling") as callback:
            for index in range(3):
                callback(Step(index, 3, *(torch.zeros(1, 5) for _ in range(4))))
        return capsys.readouterr().err

    drawn = draw(True, True)
    assert "Sampling" in drawn
    assert "3/3" in drawn
    assert draw(True, False) == ""
    assert draw(False, True) == ""
    assert pace(0.25, 8) == "4.0 steps/s, 0:02 left"
    assert pace(12, 10) == "12.0 s/step, 2:00 left"


def test_info(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    machine = json.loads(capsys.readouterr().out)
    assert machine["torch"].startswith("2.")
    assert "models" in machine
    assert main(["info", str(tiny_folder), "--json"]) == 0
    model = json.loads(capsys.readouterr().out)
    assert (model["frames"], model["fps"], model["size"], model["steps"]) == (17, 8, [32, 32], 2)
    assert "parameters in F32" in model["transformer"]
    assert main(["info", str(tiny_folder)]) == 0
    assert "size          32x32" in capsys.readouterr().out
    assert main(["info", "nowhere"]) == 2


def test_info_says_what_generate_would_refuse(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "i2v")
    config = tmp_path / "i2v" / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "in_channels": 36}))
    assert main(["info", str(tmp_path / "i2v")]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "cannot use" in line)
    assert "image-to-video" in line
    assert main(["info", str(tiny_folder)]) == 0
    assert "cannot use" not in capsys.readouterr().out


def test_run_returns_the_clips(folder: Path, tiny_folder: Path) -> None:
    report = run(["generate", "x", "--model", str(tiny_folder), "--quiet"])
    assert report is not None
    assert report.clips[0].frames.shape == (17, 32, 32, 3)


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "pusa", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip()[0].isdigit()
