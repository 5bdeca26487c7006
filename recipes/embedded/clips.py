"""Write clips of the world as a folder that `pusa train` reads: lossless mp4 files and a metadata.csv.

    python recipes/embedded/clips.py --out runs/embedded/clips --count 4096

Half of them are shape clips, half camera clips; with --pictures, they are those that the base learns from (`data.py`),
photographs of the pack among them. Nothing is lost on the way: H.264 in RGB at quantiser 0, since the
chroma of 4:2:0 would be 32 pixels wide here. A file that is there is kept.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import av
from data import Pictures, clip

from pusa.embedded import world
from pusa.media.images import Frames

FIRST_SEED = 2_000_000
"""These seeds overlap neither those of the autoencoder nor those of the base."""


def write_lossless(path: Path, frames: Frames, fps: int) -> None:
    """uint8 [N, H, W, 3] to an mp4 that decodes to the same bytes."""
    partial = path.with_suffix(".partial")
    with av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264rgb", rate=fps, options={"qp": "0"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode(None))
    partial.rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/embedded/clips"))
    parser.add_argument("--count", type=int, default=4096)
    parser.add_argument("--pictures", type=Path, help="the pack of pictures.py")
    args = parser.parse_args()
    pictures = Pictures(args.pictures) if args.pictures else None
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(args.count):
        path = args.out / f"{index:05d}.mp4"
        if pictures:
            frames, caption = clip(FIRST_SEED + index, pictures)
        else:
            scene = world.sample(FIRST_SEED + index, kind="camera" if index % 2 else "shape")
            frames, caption = world.render(scene), scene.caption
        if not path.exists():
            write_lossless(path, frames, world.FPS)
        rows.append((path.name, caption))
    with (args.out / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "text"), *rows])
    print(f"{args.count} clips in {args.out}")


if __name__ == "__main__":
    main()
