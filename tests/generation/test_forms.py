"""A clip saved as GIF, WebP or PNG frames has its sidecar and latents, as an mp4 has."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from pusa.cli import main
from pusa.errors import InputError
from pusa.generation.clip import GeneratedClip, kept_latents
from pusa.generation.pipeline import Pipeline, extend
from pusa.generation.provenance import regenerate
from pusa.media.images import read_image


@pytest.fixture(scope="module")
def clip(tiny_pipe: Pipeline) -> GeneratedClip:
    return tiny_pipe.generate("a", frames=5, steps=1)


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_an_animated_picture_is_a_clip_in_every_way(
    clip: GeneratedClip, tiny_pipe: Pipeline, tmp_path: Path, name: str
) -> None:
    path = clip.save(tmp_path / name)
    assert path == tmp_path / name
    with PILImage.open(path) as picture:
        assert picture.n_frames == 5
    kept = kept_latents(path, tiny_pipe.backbone.vae_fingerprint)
    assert kept is not None
    assert torch.equal(kept, clip.latents)
    assert torch.equal(regenerate(path, tiny_pipe).latents, clip.latents)
    longer = extend(tiny_pipe, path, frames=4, overlap=5, steps=1)
    assert torch.equal(longer.latents[:, :, :2], clip.latents)


def test_frames_are_a_folder_that_is_replaced_as_a_whole(clip: GeneratedClip, tmp_path: Path) -> None:
    folder = clip.save(tmp_path / "shot.png")
    assert folder == tmp_path / "shot"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shot", "shot.json", "shot.latents.safetensors"]
    pictures = [read_image(path) for path in sorted(folder.iterdir())]
    assert (np.stack(pictures) == clip.frames).all()
    (folder / "0005.png").write_bytes(b"of a longer clip")
    clip.save(tmp_path / "shot.png")
    assert len(list(folder.iterdir())) == 5
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(InputError, match="shot exists already"):
        clip.save(tmp_path / "shot.png", overwrite=False)


def test_a_folder_with_other_files_is_not_replaced(clip: GeneratedClip, tmp_path: Path) -> None:
    (tmp_path / "shot").mkdir()
    (tmp_path / "shot" / "notes.txt").touch()
    with pytest.raises(InputError, match=r"has notes\.txt"):
        clip.save(tmp_path / "shot.png")
    assert [path.name for path in tmp_path.iterdir()] == ["shot"]


def test_what_fails_leaves_the_former_frames(
    clip: GeneratedClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = clip.save(tmp_path / "shot.png")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pusa.generation.clip.write_frames", broken)
    with pytest.raises(KeyboardInterrupt):
        clip.save(tmp_path / "shot.png")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert len(list(folder.iterdir())) == 5


@pytest.mark.parametrize(("out", "made"), [("x.gif", "x.gif"), ("x.webp", "x.webp"), ("x.png", "x")])
def test_the_suffix_of_out_decides(
    out: str,
    made: str,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["generate", "x", "--frames", "5", "--steps", "1", "--model", str(tiny_folder), "--out", out, "--json"]
    assert main(command) == 0
    (said,) = json.loads(capsys.readouterr().out)["clips"]
    assert (said["path"], said["sidecar"]) == (made, "x.json")
    assert Path(made).exists()
    assert main(command) == 2
    assert f"{made} exists already" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert main([*command, "--overwrite"]) == 0
    capsys.readouterr()
    assert main(["generate", "x", "--out", "x.avi", "--json"]) == 2
    assert "x.mp4" in json.loads(capsys.readouterr().out)["error"]["message"]
