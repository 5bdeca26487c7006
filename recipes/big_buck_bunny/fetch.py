"""Step 1: fetch Big Buck Bunny, 14,315 frames of 1280x720 at 24 frames a second, 50 MB.

    python recipes/big_buck_bunny/fetch.py --out runs/big_buck_bunny

The film is the sample video in the source distribution of moviepy 2.2.1 on the Python package index, so pip fetches it
from whichever index it is set up for. Nothing of moviepy is installed. A film that is there and whole is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from pusa.errors import PusaError
from pusa.files import replacing

PACKAGE = "moviepy==2.2.1"
ARCHIVE = "docs/_static/medias/getting_started/moviepy_10_minutes/moviepy_10_minutes.zip"
MEMBER = "moviepy_10_minutes/resources/bbb.mp4"
SHA256 = "475fbbf34c4c367998f80c29ea03b15a743941179b12da3373fc6706e68621d0"


def fetch(out: Path) -> Path:
    """The film in the folder `out`, downloaded unless it is there; PusaError when it cannot be had or is another."""
    film = out / "big_buck_bunny.mp4"
    if film.is_file() and _hash(film.read_bytes()) == SHA256:
        return film
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        name = PACKAGE.partition("==")[0]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", name, PACKAGE]
        done = subprocess.run([*command, "--dest", folder], capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
            raise PusaError(f"pip cannot fetch {PACKAGE} ({last}); check the connection and run this again.")
        content = _unpack(next(Path(folder).glob("*.tar.gz")))
    if _hash(content) != SHA256:
        raise PusaError(f"The film in {PACKAGE} is not the one that this recipe was written for.")
    with replacing(film) as part:
        part.write_bytes(content)
    return film


def _unpack(distribution: Path) -> bytes:
    with tarfile.open(distribution) as tar:
        inner = next((member for member in tar if member.name.endswith(ARCHIVE)), None)
        stream = tar.extractfile(inner) if inner else None
        if stream is None:
            raise PusaError(f"{distribution.name} has no {ARCHIVE} in it.")
        with zipfile.ZipFile(io.BytesIO(stream.read())) as archive:
            return archive.read(MEMBER)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/big_buck_bunny"))
    print(fetch(parser.parse_args().out))


if __name__ == "__main__":
    try:
        main()
    except PusaError as error:
        sys.exit(f"fetch.py: {error}")
