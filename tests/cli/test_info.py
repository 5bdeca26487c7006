"""`pusa info MODEL` for every layout, from headers alone, and the parts that verbs take beside a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pusa.cli import main
from tests.models import layouts


@pytest.fixture(scope="module")
def base(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layouts.build(tmp_path_factory.mktemp("base") / "wan", tiny_folder)


@pytest.fixture(scope="module")
def wans(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layouts.write_original(base, tmp_path_factory.mktemp("original") / "Wan2.1-T2V")


@pytest.fixture
def about(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("pusa.models.weight_files.read", lambda *_: pytest.fail("weights were read"))

    def ask(path: Path | str, code: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        assert main(["info", str(path), "--json"]) == code
        said: dict[str, Any] = json.loads(capsys.readouterr().out)
        return said

    return ask


def test_a_folder_in_wans_own_layout(base: Path, wans: Path, about: Any) -> None:
    ours, theirs = about(wans), about(base)
    assert ours["kind"] == theirs["kind"] == "Wan of 2 layers, 256 wide, 16 channels"
    assert ours["licence"] == theirs["licence"] == "unknown"
    assert ours["transformer"] == theirs["transformer"]
    assert "parameters in BF16" in ours["transformer"]
    assert ours["vae"] == theirs["vae"]
    assert "transformer/diffusion_pytorch_model.safetensors" in theirs["files"]
    assert list(ours["files"]) == ["Wan2.1_VAE.pth", "diffusion_pytorch_model.safetensors",
                                   "models_t5_umt5-xxl-enc-bf16.pth"]  # fmt: skip
    assert (ours["fps"], ours["frames"]) == (16, 81)
    assert "refused" not in ours


def test_a_single_file_says_what_it_needs_beside_it(wans: Path, about: Any, tmp_path: Path) -> None:
    tensors = load_file(wans / "diffusion_pytorch_model.safetensors")
    save_file(layouts.fp8_scaled(tensors), tmp_path / "wan_fp8_scaled.safetensors")
    said = about(tmp_path / "wan_fp8_scaled.safetensors")
    assert said["transformer"].endswith("parameters in F8_E4M3 and BF16")
    assert said["transformer"] == f"{sum(t.numel() for t in tensors.values()) / 1e6:,.1f} M parameters in " + (
        "F8_E4M3 and BF16"
    )
    assert said["needs"] == "--vae, --text-encoder"
    pytest.importorskip("gguf")
    assert "Q8_0" in about(layouts.write_gguf(tensors, tmp_path / "wan.gguf"))["transformer"]


def test_true_sizes_have_a_name_and_a_licence(about: Any, tmp_path: Path) -> None:
    """Headers of the real 1.3B and 14B with holes for weights."""
    from diffusers import WanTransformer3DModel

    for width, layers, ffn, name in ((1536, 30, 8960, "Wan2.1 T2V 1.3B"), (5120, 40, 13824, "Wan2.1 T2V 14B")):
        with torch.device("meta"):
            model = WanTransformer3DModel(num_attention_heads=width // 128, ffn_dim=ffn, num_layers=layers)
        header, end = {}, 0
        for key, tensor in layouts.wan_transformer(model.state_dict()).items():
            header[key] = {
                "dtype": "BF16",
                "shape": list(tensor.shape),
                "data_offsets": [end, end + 2 * tensor.numel()],
            }
            end += 2 * tensor.numel()
        data = json.dumps(header).encode()
        file = tmp_path / f"{width}.safetensors"
        with file.open("wb") as stream:
            stream.write(len(data).to_bytes(8, "little") + data)
            stream.truncate(8 + len(data) + end)
        said = about(file)
        assert said["kind"].startswith(name)
        assert said["licence"] == "Apache-2.0"
        assert said["transformer"] == {1536: "1,419.0", 5120: "14,288.5"}[width] + " M parameters in BF16"


def test_two_experts_and_refused_files_are_described(wans: Path, about: Any, tmp_path: Path) -> None:
    folder = tmp_path / "A14B"
    for expert in ("high_noise_model", "low_noise_model"):
        (folder / expert).mkdir(parents=True)
        for name in ("config.json", "diffusion_pytorch_model.safetensors"):
            shutil.copy(wans / name, folder / expert)
    said = about(folder)
    assert said["experts"] == "high_noise_model and low_noise_model"
    assert said["transformer"] == said["transformer_2"]
    assert "refused" not in said
    assert said["boundary"] == 0.875
    file = shutil.copy(wans / "diffusion_pytorch_model.safetensors", tmp_path / "wan2.2_high_noise.safetensors")
    assert about(file)["needs"] == "--transformer-2, --vae, --text-encoder"
    tensors = {"patch_embedding.weight": torch.zeros(256, 36, 1, 2, 2), "img_emb.proj.0.weight": torch.zeros(4)}
    save_file(tensors, tmp_path / "i2v.safetensors")
    whole = load_file(wans / "diffusion_pytorch_model.safetensors")
    save_file(whole | {"patch_embedding.weight": torch.zeros(256, 48, 1, 2, 2)}, tmp_path / "control.safetensors")
    said = about(tmp_path / "control.safetensors")
    assert "takes 48 channels and makes 16" in said["refused"]
    assert "kind" not in said
    assert "incomplete" in about(tmp_path / "i2v.safetensors")["refused"]
    (tmp_path / "broken.safetensors").write_bytes(b"\x10" + bytes(30))
    assert "damaged" in about(tmp_path / "broken.safetensors", code=2)["error"]["message"]


def test_an_incomplete_folder_says_what_is_not_there(wans: Path, about: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(wans, tmp_path / "wan"))
    (folder / "Wan2.1_VAE.pth").unlink()
    assert about(folder)["vae"] == "missing"


def test_what_is_no_model_is_an_error(about: Any, tmp_path: Path) -> None:
    assert "is not a model: it needs a model_index.json" in about(tmp_path, code=2)["error"]["message"]


def test_a_lora_is_described(about: Any, tmp_path: Path) -> None:
    a, b = torch.zeros(4, 5120), torch.ones(5120, 4)
    tensors = {
        "blocks.0.self_attn.q.lora_A.default.weight": a,
        "blocks.0.self_attn.q.lora_B.default.weight": b,
        "blocks.0.self_attn.k.lora_A.default.weight": a[:2].clone(),
        "blocks.0.self_attn.k.lora_B.default.weight": b[:, :2].contiguous(),
    }
    save_file(tensors, tmp_path / "high_noise_pusa.safetensors")
    said = about(tmp_path / "high_noise_pusa.safetensors")
    assert (said["layers"], said["ranks"], said["for"]) == (2, "2-4", "Wan 14B, 5120 wide")
    assert (said["expert"], said["per frame"]) == ("high noise", "yes")
    both = {
        f"{part}.{key}": value.clone() for part in ("transformer_1", "transformer_2") for key, value in tensors.items()
    }
    save_file(both, tmp_path / "both.safetensors")
    said = about(tmp_path / "both.safetensors")
    assert (said["layers"], said["expert"]) == (4, "high and low noise, a LoRA for each")
    save_file(tensors, tmp_path / "wan22_high_style.safetensors")
    said = about(tmp_path / "wan22_high_style.safetensors")
    assert said["expert"] == "perhaps high noise, according to its name"
    (tmp_path / "run").mkdir()
    save_file(tensors, tmp_path / "run" / "lora.safetensors", {"pusa.pattern": "shared", "pusa.step": "400"})
    said = about(tmp_path / "run")
    assert (said["per frame"], said["step"]) == ("unknown", "400")


def test_the_embedded_model(about: Any) -> None:
    from pusa import embedded

    if not embedded.folder().is_dir():
        pytest.skip("the embedded model is left out of this installation")
    assert about("tiny")["licence"] == "Apache-2.0"
    assert about("tiny")["adapter"].endswith(f"pusa.safetensors at strength {embedded.STRENGTH:g}")
    assert "adapter" not in about("tiny-base")


def test_generate_takes_parts_beside_a_file(wans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = shutil.copy(wans / "diffusion_pytorch_model.safetensors", tmp_path / "wan.safetensors")
    line = ["generate", "a red circle", "--model", str(file), "--frames", "5", "--size", "16x16", "--steps", "1",
            "--guidance", "1", "--out", str(tmp_path / "clip.mp4"), "--json"]  # fmt: skip
    assert main(line) == 2
    assert "--vae and --text-encoder" in capsys.readouterr().out
    assert main([*line, "--vae", str(wans / "Wan2.1_VAE.pth"), "--text-encoder", str(wans)]) == 0
    assert (tmp_path / "clip.mp4").is_file()
