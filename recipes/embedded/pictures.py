"""Step 1 of the embedded base: pack training photographs, Debian's freely licensed wallpapers and GCompris's pictures.

    python recipes/embedded/pictures.py --out runs/embedded/pictures.zip

Downloads the packages below with `apt-get download` (nothing is installed), takes from each the pictures that are
photographs (some paintings are among GCompris's), and writes each whole and in two crops of half its size, scaled to a
short side of 160 pixels, as JPEG. `licences.tsv` inside the pack names package, version, file and licence of each.
These packages do not contain the held-out photographs of the world (chelsea, coffee, rocket). The pack also has a
folder with the photographs of the world in its three scales. A machine without scikit-image can then render every clip.
"""

from __future__ import annotations

import argparse
import fnmatch
import io
import re
import struct
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from pusa.embedded import world

PACKAGES = {
    "lomiri-wallpapers-16.04": ("usr/share/backgrounds/*.jpg",),
    "lomiri-wallpapers-20.04": ("usr/share/backgrounds/Kleiber*.jpg",),
    "mate-backgrounds": ("usr/share/backgrounds/mate/nature/*.jpg",),
    "plasma-workspace-wallpapers": tuple(
        f"usr/share/wallpapers/{name}/contents/images/*00x*00.*"
        for name in (
            *("Autumn", "BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow", "FallenLeaf"),
            *("Grey", "Kite", "OneStandsOut", "PastelHills", "Path", "summer_1am"),
        )
    ),
    "gcompris-qt-data": tuple(
        f"usr/share/gcompris-qt/rcc/{name}.rcc"
        for name in (
            *("categorization", "clickgame", "details", "erase", "explore_farm_animals", "explore_monuments"),
            *("explore_world_animals", "explore_world_music"),
        )
    ),
}
SHORT = 160
QUALITY = 93
LEAST = 256
"""Pictures with a shorter side than this are left out."""


def inside(blob: bytes) -> Iterator[bytes]:
    """The JPEG and WebP files inside a Qt resource file."""
    for match in re.finditer(rb"RIFF....WEBP|\xff\xd8\xff", blob, re.DOTALL):
        start = match.start()
        if blob[start : start + 4] == b"RIFF":
            yield blob[start : start + 8 + struct.unpack("<I", blob[start + 4 : start + 8])[0]]
        elif start >= 4:  # Qt writes the length before each file
            size = struct.unpack(">I", blob[start - 4 : start])[0]
            if 2000 < size <= len(blob) - start:
                yield blob[start : start + size]


def photographs(root: Path, patterns: tuple[str, ...]) -> Iterator[tuple[str, Image.Image]]:
    """(name, picture) of an unpacked package; of the sizes of one wallpaper, the largest."""
    for pattern in patterns:
        found = sorted(root.glob(pattern))
        if "contents/images" in pattern:
            found = sorted(found, key=lambda path: path.stat().st_size)[-1:]
        for path in found:
            blobs = list(inside(path.read_bytes())) if path.suffix == ".rcc" else [path.read_bytes()]
            for index, blob in enumerate(blobs):
                try:
                    picture = Image.open(io.BytesIO(blob))
                    picture.draft("RGB", (4 * SHORT, 4 * SHORT))
                    plain = picture.mode == "RGB"
                    picture = picture.convert("RGB")
                except OSError:
                    continue  # bytes that looked like the start of a picture
                if plain and min(picture.size) >= LEAST:
                    name = str(path.relative_to(root))
                    yield (f"{name}#{index}" if path.suffix == ".rcc" else name), picture


def licence(root: Path, package: str, name: str) -> str:
    """What the package's machine-readable copyright file says of a file; the general entry where no other fits."""
    text = (root / "usr/share/doc" / package / "copyright").read_text()
    found = "see the package's copyright file"
    for entry in text.split("\n\n"):
        if files := re.search(r"^Files:(.*?)^\S", entry + "\nx", re.DOTALL | re.MULTILINE):
            said = re.search(r"^License: *(.+)$", entry, re.MULTILINE)
            for pattern in files[1].split():
                if said and (fnmatch.fnmatch(name, "*" + pattern) or Path(pattern).name == Path(name).name):
                    found = said[1].strip()
    return found


def cuts(picture: Image.Image) -> Iterator[Image.Image]:
    """The whole, and its upper left and lower right of half the size where enough pixels are left."""
    width, height = picture.size
    boxes = [(0, 0, width, height)]
    if min(width, height) >= 2 * SHORT:
        boxes += [(0, 0, width // 2, height // 2), (width - width // 2, height - height // 2, width, height)]
    for box in boxes:
        part = picture.crop(box)
        ratio = SHORT / min(part.size)
        yield part.resize([max(SHORT, round(side * ratio)) for side in part.size], Image.Resampling.LANCZOS)


SCALES = (96, 112, 128)


def install(path: Path) -> None:
    """Give `pusa.embedded.world` its photographs from the pack. Without scikit-image it has no others."""
    with zipfile.ZipFile(path) as pack:
        known = {
            Path(name).stem: Image.open(io.BytesIO(pack.read(name))).convert("RGB")
            for name in pack.namelist()
            if name.startswith("world/")
        }
    scaled = world._scaled
    world._scaled = lambda name, scale: known.get(f"{name}_{scale}") or scaled(name, scale)  # type: ignore[assignment]


def load(path: Path) -> list[Image.Image]:
    """All pictures of a pack."""
    with zipfile.ZipFile(path) as pack:
        names = sorted(name for name in pack.namelist() if name.endswith(".jpg") and "/" not in name)
        return [Image.open(io.BytesIO(pack.read(name))).convert("RGB") for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/embedded/pictures.zip"))
    parser.add_argument("--debs", type=Path, help="a folder with the packages, instead of downloading them")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows, count = ["pictures\tpackage\tversion\tfile\tlicence"], 0
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(args.out, "w") as pack:
        for package, patterns in PACKAGES.items():
            folder = args.debs or Path(scratch)
            if args.debs is None:
                subprocess.run(["apt-get", "download", package], cwd=folder, check=True)
            (deb,) = folder.glob(f"{package}_*.deb")
            root = Path(scratch) / package
            subprocess.run(["dpkg-deb", "-x", deb.resolve(), root], check=True)
            version = deb.name.split("_")[1].replace("%3a", ":")
            for name, picture in photographs(root, patterns):
                first = count
                for cut in cuts(picture):
                    data = io.BytesIO()
                    cut.save(data, "JPEG", quality=QUALITY, subsampling=0)
                    pack.writestr(f"{count:04d}.jpg", data.getvalue())
                    count += 1
                said = licence(root, package, name.split("#")[0])
                rows.append(f"{first}-{count - 1}\t{package}\t{version}\t{name}\t{said}")
        for name in (*world.PHOTOGRAPHS["train"], *world.PHOTOGRAPHS["heldout"]):
            for scale in SCALES:
                data = io.BytesIO()
                world._scaled(name, scale).save(data, "PNG")
                pack.writestr(f"world/{name}_{scale}.png", data.getvalue())
        pack.writestr("licences.tsv", "\n".join(rows) + "\n")
    print(f"{args.out}: {count} pictures of {len(rows) - 1} photographs, {args.out.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
