from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pusa.cli.shared import arguments
from pusa.cli.shared.arguments import Source
from pusa.errors import InputError


def test_a_source_names_a_place_a_part_and_a_noise() -> None:
    assert Source.parse("cat.png@8,noise=0.2", "--keyframe") == Source(Path("cat.png"), "8", 0.2)
    assert Source.parse("cat.png@-1", "--keyframe") == Source(Path("cat.png"), "-1")
    assert Source.parse("a,b.png", "--keyframe") == Source(Path("a,b.png"))
    clip = Source.parse("a.mp4@1.5s,frames=8,noise=1,start=-8", "--video", keys=("frames", "start", "noise"))
    assert clip == Source(Path("a.mp4"), "1.5s", 1.0, "-8", 8)


def test_a_colon_separates_as_well() -> None:
    assert Source.parse("cat.png:40", "--keyframe") == Source(Path("cat.png"), "40")


def test_a_file_whose_name_looks_like_a_place_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("me@home.png").touch()
    Path("me@8").touch()
    assert Source.parse("me@home.png", "--keyframe") == Source(Path("me@home.png"))
    assert Source.parse("me@8", "--keyframe") == Source(Path("me@8"))
    assert Source.parse("me@home.png@4", "--keyframe") == Source(Path("me@home.png"), "4")


@given(st.integers(-500, 500), st.floats(0, 1))
def test_every_frame_and_noise_survives(frame: int, noise: float) -> None:
    source = Source.parse(f"x.png@{frame},noise={noise!r}", "--keyframe")
    assert source.at == str(frame)
    assert source.noise == noise


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cat.png@", "place in a clip"),
        ("cat.png@middle", "place in a clip"),
        ("cat.png@-1.5s", "place in a clip"),
        ("cat.png@3,noise=2", "outside 0 to 1"),
        ("cat.png@3,noise=nan", "noise multiplier"),
        ("cat.png@3,nosie=0.2", "'nosie'"),
        ("cat.png@3,frames=5", "'frames'"),
    ],
)
def test_a_mistyped_source_is_answered_with_its_flag(text: str, says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)) as error:
        Source.parse(text, "--keyframe")
    assert "--keyframe" in str(error.value)


@pytest.mark.parametrize("part", ["frames=", "frames=0:9", "frames=-3", "start=", "start=end"])
def test_a_mistyped_part_is_refused(part: str) -> None:
    with pytest.raises(InputError, match=f"--video a.mp4,{part}: "):
        Source.parse(f"a.mp4,{part}", "--video", keys=("frames", "start", "noise"))


def test_sizes() -> None:
    assert arguments.size("832x480") == arguments.size("832*480") == arguments.size("832 × 480") == (832, 480)
    for bad in ("832", "832x", "?x480", "axb", "-1x3"):
        with pytest.raises(InputError, match="WIDTHxHEIGHT"):
            arguments.size(bad)


def test_lists_of_the_official_scripts() -> None:
    assert arguments.number_list("0,20", "--cond_position", int) == [0, 20]
    assert arguments.number_list("[0, -1]", "--cond_position", int) == [0, -1]
    assert arguments.number_list("0.2 0.5", "--noise_multipliers", float) == [0.2, 0.5]
    with pytest.raises(InputError, match="list of numbers"):
        arguments.number_list("0;20", "--cond_position", int)


def test_a_lora_carries_its_own_scale_or_the_common_one() -> None:
    assert arguments.lora("pusa.safetensors:1.4", 1.0) == (Path("pusa.safetensors"), 1.4)
    assert arguments.lora("pusa.safetensors", 0.7) == (Path("pusa.safetensors"), 0.7)
    assert arguments.lora("C:/pusa.safetensors", 1.0) == (Path("C:/pusa.safetensors"), 1.0)


@pytest.mark.parametrize(
    "path",
    [r"C:\loras\pusa.safetensors", "C:pusa.safetensors", "a:b.pt", "12:30.safetensors", r"\\host\x.pt", "runs/a"],
)
def test_colons_in_the_name_of_a_lora_are_part_of_it(path: str) -> None:
    assert arguments.lora(path, 0.7) == (Path(path), 0.7)
    assert arguments.lora(f"{path}:1.4", 0.7) == (Path(path), 1.4)
    assert arguments.lora(f"{path}:-2", 0.7) == (Path(path), -2.0)


def test_a_lora_that_is_there_is_its_whole_name(tmp_path: Path) -> None:
    for folder in (tmp_path / "a:1", tmp_path / "b:0.5"):
        folder.mkdir()
        assert arguments.lora(str(folder), 1.0) == (folder, 1.0)
        assert arguments.lora(f"{folder}:2", 1.0) == (folder, 2.0)


@pytest.mark.parametrize("scale", ["nan", "inf", "abc", ""])
def test_a_lora_scale_is_a_finite_number(scale: str, tmp_path: Path) -> None:
    text = f"{tmp_path}/x:{scale}"
    with pytest.raises(InputError, match=f"{scale!r} is not a finite number"):
        arguments.lora(text, 1.0)
    Path(text).touch()
    assert arguments.lora(text, 1.0) == (Path(text), 1.0)


def test_slugs_are_short_file_names() -> None:
    assert arguments.slug("A red circle, moving LEFT!") == "a-red-circle-moving-left"
    assert arguments.slug("") == arguments.slug("///") == "clip"
    assert arguments.slug("über die Straße") == "über-die-straße"
    assert len(arguments.slug("word " * 10_000)) <= 60
    assert len(arguments.slug("x" * 10_000)) <= 60
