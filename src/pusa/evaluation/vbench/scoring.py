"""Run the user's checkout of the official code on a folder of videos, one dimension at a time, in its own environment.

The official code needs other versions of most libraries, and weights that it downloads. So it is never imported here:
its `evaluate_i2v.py` runs in its own Python from its own folder, after a check of everything that it needs. A dimension
that cannot run is "unavailable", with the reason; it never counts as 0.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pusa.errors import InputError
from pusa.evaluation.vbench import verification
from pusa.evaluation.vbench.manifest import Manifest
from pusa.evaluation.vbench.protocol import DIMENSIONS, UNWEIGHED
from pusa.evaluation.vbench.totals import CONTENT, SETTINGS, official
from pusa.files import make_folder, write_json

ENTRY = "evaluate_i2v.py"
INFO = "vbench2_beta_i2v/vbench2_i2v_full_info.json"
CROPS = "vbench2_beta_i2v/data/crop"
MODULES: dict[str, tuple[str, ...]] = {
    "i2v_subject": ("vbench2_beta_i2v.i2v_subject",),
    "i2v_background": ("vbench2_beta_i2v.i2v_background", "dreamsim"),
    "camera_motion": ("vbench2_beta_i2v.camera_motion",),
    **{name: (f"vbench.{name}",) for name in DIMENSIONS if DIMENSIONS[name].group == "quality"},
    UNWEIGHED: (f"vbench.{UNWEIGHED}",),
}
"""the modules that its environment must be able to import"""
CACHE, HUB, CLIP, MODELS = "cache", "hub", "clip", "models"
_DINO = ((HUB, "facebookresearch_dino_main/hubconf.py"), (HUB, "checkpoints/dino_vitbase16_pretrain.pth"))
WEIGHTS: dict[str, tuple[tuple[str, str], ...]] = {
    "i2v_subject": _DINO,
    "subject_consistency": _DINO,
    "i2v_background": tuple(
        (MODELS, name)
        for name in (
            "ensemble_lora/adapter_config.json",
            "dino_vitb16_pretrain.pth",
            "clip_vitb16_pretrain.pth.tar",
            "open_clip_vitb16_pretrain.pth.tar",
        )
    ),
    "background_consistency": ((CLIP, "ViT-B-32.pt"),),
    "camera_motion": (
        (HUB, "facebookresearch_co-tracker_main/hubconf.py"),
        (HUB, "checkpoints/cotracker2.pth"),
    ),
    "motion_smoothness": ((CACHE, "amt_model/amt-s.pth"),),
    "dynamic_degree": ((CACHE, "raft_model/models/raft-things.pth"),),
    "aesthetic_quality": ((CLIP, "ViT-L-14.pt"), (CACHE, "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth")),
    "imaging_quality": ((CACHE, "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth"),),
}
"""the files that each dimension downloads: the folder in which the official code looks for them, and their names"""
_PROBE = """
import importlib, json, sys
sys.path.insert(0, ".")
found = {}
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
        found[name] = None
    except BaseException as error:
        found[name] = f"{type(error).__name__}: {error}".splitlines()[0]
try:
    import inspect, torchvision
    default = inspect.signature(torchvision.transforms.Resize.__init__).parameters.get("antialias")
    found["torchvision"] = [torchvision.__version__, repr(default.default) if default else "absent"]
except BaseException as error:
    found["torchvision"] = [None, str(error)]
print("PUSA" + json.dumps(found))
"""
_LEGACY = """
import runpy, sys
import torchvision.transforms as transforms
kept = transforms.Resize.__init__
def without(self, *args, **options):
    options.setdefault("antialias", False)
    kept(self, *args, **options)
transforms.Resize.__init__ = without
sys.argv[0] = "evaluate_i2v.py"
sys.path.insert(0, ".")
runpy.run_path("evaluate_i2v.py", run_name="__main__")
"""
TAIL, WIDTH = 3, 200
"""for a reason: how many of the last lines of the official code's output, and how many characters of each"""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Checkout:
    """The official code.

    python: of its environment, a path or a name. download: let the official code download missing files.
    legacy_antialias: resize without antialiasing, which was the default of older versions of torchvision.
    """

    folder: Path
    python: str
    download: bool = False
    legacy_antialias: bool = False

    @property
    def interpreter(self) -> str:
        """`python`, as an absolute path if it is a path. A link is not resolved, because it defines the environment."""
        return str(Path(self.python).absolute()) if os.sep in self.python else self.python

    def check(self, manifest: Manifest) -> None:
        """Raise InputError unless this is the official code with the list of the manifest, and its Python runs."""
        if missing := [name for name in (ENTRY, INFO) if not (self.folder / name).is_file()]:
            raise InputError(f"{self.folder} has no {missing[0]}; give a checkout of Vchitect/VBench.")
        if hashlib.sha256((self.folder / INFO).read_bytes()).hexdigest() != manifest.info_sha256:
            raise InputError(
                f"{self.folder / INFO} is not the list that the manifest was made from; make the manifest from it."
            )
        try:
            subprocess.run([self.interpreter, "-c", ""], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise InputError(
                f"{self.python} does not run ({error}); give the Python of VBench's environment."
            ) from error

    def places(self) -> dict[str, Path]:
        """The folders in which the official code looks for weights, by its environment variables."""
        home = Path.home()
        cache = os.environ.get("VBENCH_CACHE_DIR", home / ".cache/vbench")
        torch_home = os.environ.get("TORCH_HOME", Path(os.environ.get("XDG_CACHE_HOME", home / ".cache")) / "torch")
        return {
            CACHE: self.folder / cache,
            HUB: self.folder / torch_home / "hub",
            CLIP: home / ".cache/clip",
            MODELS: self.folder / "models",
        }

    def probe(self, dimensions: Sequence[str]) -> dict[str, Any]:
        """The modules that its environment can import, and how its torchvision resizes."""
        modules = sorted({name for dimension in dimensions for name in MODULES[dimension]})
        done = subprocess.run(
            [self.interpreter, "-c", _PROBE, json.dumps(modules)], cwd=self.folder, capture_output=True, text=True
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("PUSA")]
        if not lines:
            raise InputError(
                f"{self.python} cannot check the modules of VBench ({_last(done.stderr)}); give the Python of VBench's "
                "environment."
            )
        found: dict[str, Any] = json.loads(lines[-1].removeprefix("PUSA"))
        return found


def preflight(
    checkout: Checkout, manifest: Manifest, dimensions: Sequence[str], there: Container[str]
) -> tuple[dict[str, str], list[Any]]:
    """Find the dimensions that cannot be scored, before any is scored.

    there: the existing videos. Returns the reasons by dimension, and [torchvision's version, its default for
    antialias].
    """
    found = checkout.probe(dimensions)
    places, reasons = checkout.places(), {}
    crops = checkout.folder / CROPS / manifest.crop
    lacking = [name for name in dict.fromkeys(v.image for v in manifest.videos) if not (crops / name).is_file()]
    for dimension in dimensions:
        why = [f"{name} cannot be imported ({found[name]})" for name in MODULES[dimension] if found[name]]
        if not checkout.download:
            weights = [places[place] / name for place, name in WEIGHTS.get(dimension, ())]
            why += [f"{path} is missing" for path in weights if not path.is_file()]
        if dimension.startswith("i2v_") and lacking:
            why.append(f"{crops} lacks {lacking[0]}" + (f" and {len(lacking) - 1} more" if lacking[1:] else ""))
        wanted = _files(manifest, dimension)
        if absent := [file for file in wanted if file not in there]:
            why.append(f"{len(absent)} of its {len(wanted)} videos are missing, such as {absent[0]}")
        if not wanted:
            why.append(f"the suite {manifest.suite} has no video for it")
        if why:
            reasons[dimension] = "; ".join(why)
    return reasons, found["torchvision"]


def _files(manifest: Manifest, dimension: str) -> list[str]:
    return [video.file for video in manifest.videos if dimension in video.dimensions]


def score(
    checkout: Checkout,
    manifest: Manifest,
    folder: Path,
    out: Path,
    dimensions: Sequence[str],
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Score every dimension that can be scored. Results are stored in `out`/DIMENSION.json and reused from there.

    Returns {dimension: the official code's result, or {"unavailable": reason}}, also for dimensions that were scored
    before, and "settings". Raises InputError if a video does not match the manifest, or if `out` contains results of
    other videos or other settings.
    """
    checkout.check(manifest)
    run = verification.check_run(folder, manifest)
    there = verification.contents(manifest, folder, lambda done, total: progress("Reading", done, total))
    reasons, torchvision = preflight(checkout, manifest, dimensions, there)
    settings = {
        "videos": {key: run.get(key) for key in ("manifest", "suite", "settings")},
        "fps": manifest.fps,
        "crop": manifest.crop,
        "torchvision": torchvision[0],
        "antialias": "False" if checkout.legacy_antialias else torchvision[1],
    }
    make_folder(out, "the scores")
    results: dict[str, Any] = {}
    before = [name for name in MODULES if name not in dimensions and (out / f"{name}.json").exists()]
    for number, dimension in enumerate([*dimensions, *before]):
        progress("Scoring", min(number, len(dimensions)), len(dimensions))
        file = out / f"{dimension}.json"
        videos = hashlib.sha256("".join(there.get(name, "") for name in _files(manifest, dimension)).encode())
        record = {SETTINGS: settings, CONTENT: videos.hexdigest()}
        if file.exists():
            try:
                kept = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise InputError(f"{file} is damaged; remove it to score the dimension again.") from error
            if different := [key for key, value in record.items() if kept.get(key) != value]:
                what = "from other videos" if different == [CONTENT] else "with other settings"
                raise InputError(f"{file} was scored {what}; remove it, or choose another --out.")
            results[dimension] = kept[dimension]
        elif dimension in reasons:
            results[dimension] = {"unavailable": reasons[dimension]}
        else:
            results[dimension] = _run(checkout, manifest, folder / verification.VIDEOS, dimension)
            if isinstance(results[dimension], list):
                write_json(file, {dimension: results[dimension], **record})
    progress("Scoring", len(dimensions), len(dimensions))
    return {**results, SETTINGS: settings}


def _run(checkout: Checkout, manifest: Manifest, videos: Path, dimension: str) -> Any:
    """Score one dimension with the official code."""
    with tempfile.TemporaryDirectory(prefix="vbench-") as place:
        program = ["-c", _LEGACY] if checkout.legacy_antialias else [ENTRY]
        flags = ["--videos_path", str(videos.absolute()), "--dimension", dimension, "--ratio", manifest.crop]
        done = subprocess.run(
            [checkout.interpreter, *program, *flags, "--output_path", place],
            cwd=checkout.folder,
            capture_output=True,
            text=True,
        )
        written = sorted(Path(place).glob("*_eval_results.json"))
        if done.returncode or not written:
            return {"unavailable": f"the official code failed: {_last(done.stderr or done.stdout)}"}
        # A kind of camera motion without a video is NaN, which JSON does not have.
        found = json.loads(written[-1].read_text(encoding="utf-8"), parse_constant=lambda _: None)
    try:
        _, scored = official(dimension, found.get(dimension))
    except InputError as error:
        return {"unavailable": str(error)}
    wanted = _files(manifest, dimension)
    if lost := sorted(set(wanted) - set(scored)):
        return {"unavailable": f"{len(lost)} of {len(wanted)} videos were not scored, such as {lost[0]}"}
    if foreign := sorted(set(scored) - set(wanted)):
        return {"unavailable": f"{len(foreign)} videos that are not in the manifest were scored, such as {foreign[0]}"}
    return found[dimension]


def _last(text: str) -> str:
    lines = [line.strip()[:WIDTH] for line in text.strip().splitlines()[-TAIL:]]
    return " / ".join(lines).rstrip(".") or "it printed nothing"
