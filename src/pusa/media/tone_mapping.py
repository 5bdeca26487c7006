"""Map colours of high dynamic range (HDR) and wide gamut to BT.709, the colours that the models know.

Signals are decoded to light by ITU-R BT.2100 (PQ, HLG) or BT.1886 (standard range). Diffuse white, 203 cd/m² by
BT.2408, becomes the white of BT.709. Brighter light is rolled off by the curve of BT.2390-11 (5.4.1), applied to the
largest of the three components so that hues stay. Colours outside the gamut are clipped.

A conversion is a table of 65³ colours. FFmpeg applies it to frames, with tetrahedral interpolation. It differs from the
formulas by a fraction of a level of 255 on average, and by some levels at the edge of the gamut.
"""

from __future__ import annotations

import tempfile
import threading
import warnings
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame
from numpy.typing import NDArray

Array = NDArray[np.float64]
Transfer = Literal["PQ", "HLG", "gamma"]

WHITE = 203.0
"""diffuse white in cd/m²"""
PEAK = 1000.0
"""the brightest light of HDR without metadata, and the peak of an HLG display, in cd/m²"""
_GRID = 65
_GAMMA = 2.4

# Codes of ITU-T H.273.
TRANSFERS: dict[int, Transfer] = {16: "PQ", 18: "HLG"}
_CHROMATICITIES = {
    1: (0.640, 0.330, 0.300, 0.600, 0.150, 0.060),  # BT.709
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046),  # BT.2020
    11: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # DCI-P3; its white is adapted to D65
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # Display P3
}
_D65 = (0.3127, 0.3290)
_LUMA_2020 = np.array([0.2627, 0.6780, 0.0593])


@dataclass(frozen=True)
class Colours:
    """What the three components of a picture mean. primaries: a code of H.273. peak: the brightest light in cd/m²."""

    transfer: Transfer
    primaries: int
    peak: float = PEAK

    @property
    def is_hdr(self) -> bool:
        return self.transfer != "gamma"


def colours(transfer: int, primaries: int, peak: float = 0) -> Colours | None:
    """The colours of a picture by its codes of H.273; None if it has the range and about the gamut of BT.709.

    peak: the brightest light in cd/m², 0 if it is not known.
    """
    kind = TRANSFERS.get(transfer, "gamma")
    gamut = primaries if primaries in _CHROMATICITIES else 9 if kind != "gamma" else 1
    if kind == "gamma" and gamut == 1:
        return None
    return Colours(kind, gamut, float(peak) if 0 < peak <= 10_000 and kind == "PQ" else PEAK)


def tell(path: Path, source: Colours | None) -> None:
    """Warn that a file is tone-mapped, if its colours are those of HDR.

    The warning is raised in one place, so that Python shows it once for a file that is opened several times.
    """
    if source is not None and source.is_hdr:
        told = f"{path} is HDR ({source.transfer}): it is tone-mapped to BT.709, the colours that the models know."
        warnings.warn(told, stacklevel=1)


def to_bt709(signal: Array, source: Colours) -> NDArray[np.uint8]:
    """Components [..., 3] in [0, 1] of `source` as uint8 RGB of BT.709."""
    return _encoded(_shown(np.clip(signal, 0, 1), source))


def mapped(frame: VideoFrame, source: Colours) -> NDArray[np.uint8]:
    """A frame of format rgb48le with the colours `source` as uint8 RGB of BT.709, [H, W, 3]."""
    key = (source, frame.width, frame.height)
    if getattr(_local, "key", None) != key:  # frames of one clip follow one another, in each thread
        _local.key, _local.graph = key, _graph(source, frame)
    frame.pts, frame.time_base = None, Fraction(1)
    _local.graph.vpush(frame)
    return _encoded(_local.graph.vpull().to_ndarray(format="gbrpf32le"))


_local: Any = threading.local()


def _graph(source: Colours, frame: VideoFrame) -> Graph:
    graph = Graph()
    buffer = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1))
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "colours.cube"
        table.write_text(_table(source))
        floats, lut = graph.add("format", "gbrpf32le"), graph.add("lut3d", file=str(table), interp="tetrahedral")
        graph.link_nodes(buffer, floats, lut, graph.add("buffersink")).configure()
    return graph


@lru_cache(maxsize=2)
def _table(source: Colours) -> str:
    """`_shown` as a text in the format .cube; red varies fastest. Light interpolates well at the edge of the gamut."""
    axis = np.linspace(0, 1, _GRID)
    blue, green, red = np.meshgrid(axis, axis, axis, indexing="ij")
    values = _shown(np.stack([red, green, blue], -1), source).reshape(-1, 3)
    return f"LUT_3D_SIZE {_GRID}\n" + "\n".join(f"{r:.7g} {g:.7g} {b:.7g}" for r, g, b in values.tolist())


def _shown(signal: Array, source: Colours) -> Array:
    """The light [..., 3] that a screen of BT.709 is to show for components of `source`; 1 is its white."""
    light = _light(signal, source.transfer) @ _to_709(source.primaries).T
    if source.is_hdr:
        largest = np.maximum(light.max(axis=-1, keepdims=True), 1e-9)
        light = light * (_rolled_off(largest, source.peak) / largest)
    return np.asarray(light)


def _encoded(light: NDArray[Any]) -> NDArray[np.uint8]:
    return np.asarray(np.rint(255 * np.clip(light, 0, 1) ** (1 / _GAMMA)).astype(np.uint8))


def _light(signal: Array, transfer: Transfer) -> Array:
    """Components of light; 1 is diffuse white."""
    if transfer == "PQ":
        return _pq_to_nits(signal) / WHITE
    if transfer == "HLG":
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
        return np.asarray(PEAK / WHITE * (scene @ _LUMA_2020)[..., None] ** 0.2 * scene)
    return np.asarray(signal**_GAMMA)


_M1, _M2, _C1, _C2, _C3 = 2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32


def _pq_to_nits(signal: Array) -> Array:
    root = signal ** (1 / _M2)
    return np.asarray(10_000 * (np.maximum(root - _C1, 0) / (_C2 - _C3 * root)) ** (1 / _M1))


def _nits_to_pq(nits: Array | float) -> Array:
    root = np.clip(np.asarray(nits) / 10_000, 0, 1) ** _M1
    return np.asarray(((_C1 + _C2 * root) / (1 + _C3 * root)) ** _M2)


def _rolled_off(light: Array, peak: float) -> Array:
    """The curve of BT.2390: light up to `peak` cd/m² is brought to at most 1. Dark and middle tones stay."""
    if peak <= WHITE:
        return np.minimum(light, 1)
    top = _nits_to_pq(peak)
    value, most = np.minimum(_nits_to_pq(light * WHITE) / top, 1), _nits_to_pq(WHITE) / top
    knee = 1.5 * most - 0.5
    t = (value - knee) / (1 - knee)
    bent = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    return _pq_to_nits(np.where(value < knee, value, bent) * top) / WHITE


@lru_cache(maxsize=8)
def _to_709(primaries: int) -> Array:
    """The matrix from linear components with these primaries to those of BT.709, [3, 3]."""
    return np.asarray(np.linalg.solve(to_xyz(chromaticities(1)), to_xyz(chromaticities(primaries))))


def chromaticities(primaries: int) -> Array:
    """x and y of white, red, green and blue, [8], for a code of H.273; those of BT.709 for other gamuts."""
    return np.array([*_D65, *_CHROMATICITIES.get(primaries, _CHROMATICITIES[1])])


def to_xyz(points: Array) -> Array:
    """The matrix from linear components to CIE XYZ, [3, 3]; white has Y = 1. points: see `chromaticities`."""
    x, y = points.reshape(4, 2).T
    white, *colours = np.stack([x / y, np.ones(4), (1 - x - y) / y], axis=1)
    basis = np.stack(colours, axis=1)
    return np.asarray(basis * np.linalg.solve(basis, white))
