"""A checkout with the entry points of VBench, which scores a video by the length of its file's name.

With these one can tell that the harness calls the official interface; the official code itself needs weights. Its
results are as the official code writes them: kinds of motion inside those of camera motion, NaN for a kind without a
video, and the videos of imaging quality in percent.
"""

from __future__ import annotations

from pathlib import Path

EVALUATE = """
import argparse, json, os, pathlib, sys
parser = argparse.ArgumentParser()
for flag in ("--output_path", "--full_json_dir", "--videos_path", "--ratio"):
    parser.add_argument(flag)
parser.add_argument("--dimension", nargs="+")
args = parser.parse_args()
here = pathlib.Path(__file__).resolve().parent if "__file__" in globals() else pathlib.Path(".")
info = json.loads(pathlib.Path("vbench2_beta_i2v/vbench2_i2v_full_info.json").read_text())
assert os.path.isdir(f"vbench2_beta_i2v/data/crop/{args.ratio}")
if "aesthetic_quality" in args.dimension:
    sys.exit("RuntimeError: no CUDA here")
import torchvision.transforms as transforms
bias = 0.0 if transforms.Resize(1).antialias else 0.001
results = {}
for dimension in args.dimension:
    videos = [
        f"{args.videos_path}/{entry['prompt_en']}-{i}.mp4"
        for entry in info if dimension in entry["dimension"] for i in range(5)
        if os.path.exists(f"{args.videos_path}/{entry['prompt_en']}-{i}.mp4")
    ]
    if dimension == "motion_smoothness":
        videos = videos[1:]
    scores = [min(1.0, len(os.path.basename(v)) / 100 + bias) for v in videos]
    unit = 100 if dimension == "imaging_quality" else 1
    rows = [{"video_path": v, "video_results": unit * score} for v, score in zip(videos, scores)]
    results[dimension] = [sum(scores) / max(1, len(scores)), rows]
    if dimension == "camera_motion":
        results[dimension].insert(1, {"pan_left": 1.0, "zoom_in": float("nan")})
path = pathlib.Path(args.output_path)
path.mkdir(exist_ok=True)
(path / "results_2026-01-01-00:00:00_eval_results.json").write_text(json.dumps(results))
"""
TORCHVISION = """

class Resize:
    def __init__(self, size, antialias=True):
        self.antialias = antialias
"""


def write(folder: Path, info: str, crops: Path, crop: str) -> Path:
    """Write the checkout; crops: a folder of pictures, which it gets as those of the ratio `crop`."""
    beta = folder / "vbench2_beta_i2v"
    (beta / "data" / "crop").mkdir(parents=True)
    (beta / "data" / "crop" / crop).symlink_to(crops, target_is_directory=True)
    (beta / "vbench2_i2v_full_info.json").write_text(info)
    (folder / "evaluate_i2v.py").write_text(EVALUATE)
    packages = {
        "vbench": ("subject_consistency", "aesthetic_quality", "motion_smoothness", "dynamic_degree",
                   "imaging_quality", "temporal_flickering"),
        "vbench2_beta_i2v": ("i2v_subject", "i2v_background", "camera_motion"),
        "dreamsim": (),
    }  # fmt: skip
    for package, modules in packages.items():
        (folder / package).mkdir(exist_ok=True)
        for module in ("__init__", *modules):
            (folder / package / f"{module}.py").write_text("")
    (folder / "vbench" / "background_consistency.py").write_text("import a_library_that_is_not_there")
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text("from torchvision import transforms\n__version__ = '0.99'\n")
    (folder / "torchvision" / "transforms.py").write_text(TORCHVISION)
    return folder
