"""Bring the colours of pictures to sRGB, as browsers do: from ICC profiles, code points (cICP, nclx), and PNG's gAMA.

Broken colour data count as none. Pixels whose profile means sRGB stay as they are.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageCms

from pusa.media import tone_mapping

CODES = "code points"
"""the key of `Image.info` under which the codes of H.273 stand: (primaries, transfer)"""
_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_GREYS = ("1", "L", "LA", "La")
_SRGB_GAMMA = 1 / 2.2
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def to_srgb(picture: PILImage.Image) -> PILImage.Image:
    """The picture in colours of sRGB, with its transparency. The mode may change."""
    info = picture.info
    try:
        if source := stated_hdr(picture):
            return _with_alpha(_tone_mapped(_rgb(picture), source), picture)
        if isinstance(info.get("icc_profile"), bytes) and info["icc_profile"]:
            return _from_profile(picture, info["icc_profile"])
        if CODES in info:
            return _from_light(picture, _light(np.arange(256) / 255), tone_mapping.chromaticities(info[CODES][0]))
        if "srgb" not in info and isinstance(info.get("gamma"), float):
            return _from_gamma(picture, info["gamma"], info.get("chromaticity"))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, ArithmeticError, np.linalg.LinAlgError):
        pass  # broken colour data beside good pixels
    return picture


def stated_hdr(picture: PILImage.Image) -> tone_mapping.Colours | None:
    """The HDR that the picture states by code points; None if it states none."""
    codes = picture.info.get(CODES)
    source = tone_mapping.colours(codes[1], codes[0]) if codes else None
    return source if source is not None and source.is_hdr else None


def _rgb(picture: PILImage.Image) -> PILImage.Image:
    return picture.convert("RGBA").convert("RGB") if picture.mode in ("P", "PA") else picture.convert("RGB")


def _with_alpha(colours: PILImage.Image, picture: PILImage.Image) -> PILImage.Image:
    if picture.has_transparency_data:
        colours.putalpha(picture.convert("RGBA").getchannel("A"))
    return colours


def _tone_mapped(picture: PILImage.Image, source: tone_mapping.Colours) -> PILImage.Image:
    deep = np.asarray(picture).astype(np.uint16) * 257
    return PILImage.fromarray(tone_mapping.mapped(VideoFrame.from_ndarray(deep, "rgb48le"), source))


def _from_profile(picture: PILImage.Image, data: bytes) -> PILImage.Image:
    profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
    mode = _SPACES.get(str(profile.profile.xcolor_space).strip())
    fits = {"CMYK": picture.mode == "CMYK", "L": picture.mode in _GREYS, "RGB": picture.mode != "CMYK"}
    if mode is None or not fits[mode]:
        return picture  # a profile for another kind of picture
    transform = ImageCms.buildTransform(
        profile,
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION | (ImageCms.Flags.NOOPTIMIZE if mode == "L" else 0),
    )
    samples = _samples(mode)
    if samples is not None and _difference(_applied(samples, transform), samples.convert("RGB")) <= 2:
        return picture
    if samples is not None and mode == "L":  # of 256 colours, each is computed exactly
        colours = np.asarray(_applied(samples, transform))[0][np.asarray(picture.convert(mode))]
        return _with_alpha(PILImage.fromarray(colours), picture)
    return _with_alpha(_applied(_rgb(picture) if mode == "RGB" else picture.convert(mode), transform), picture)


def _applied(picture: PILImage.Image, transform: ImageCms.ImageCmsTransform) -> PILImage.Image:
    converted = ImageCms.applyTransform(picture, transform)
    assert converted is not None
    return converted


def _samples(mode: str) -> PILImage.Image | None:
    """Colours by which a profile is recognised as sRGB; None for CMYK."""
    if mode == "CMYK":
        return None
    if mode == "L":
        return PILImage.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    return PILImage.fromarray(np.stack(np.meshgrid(steps, steps, steps), -1).reshape(9, 81, 3))


def _difference(a: PILImage.Image, b: PILImage.Image) -> int:
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b)).max())


def _from_gamma(picture: PILImage.Image, gamma: float, chromaticity: Any) -> PILImage.Image:
    """gamma: the exponent of the file, 1/2.2 for a usual picture. chromaticity: of white, red, green and blue."""
    if not 0.01 < gamma < 10:
        return picture
    usual = abs(gamma - _SRGB_GAMMA) < 0.02
    levels = np.arange(256) / 255
    points = np.asarray(chromaticity, np.float64) if chromaticity else tone_mapping.chromaticities(1)
    return _from_light(picture, _light(levels) if usual else levels ** (1 / gamma), points)


def _from_light(picture: PILImage.Image, light: NDArray[np.float64], points: NDArray[np.float64]) -> PILImage.Image:
    """light: of each of the 256 levels. points: the primaries, see `tone_mapping.chromaticities`."""
    own = tone_mapping.chromaticities(1)
    if np.abs(points - own).max() < 0.01:
        table = _srgb(light)
        if np.array_equal(table, np.arange(256)):
            return picture
        if picture.mode in ("L", "RGB"):
            return picture.point(table.tolist() * len(picture.getbands()))
        return _with_alpha(_rgb(picture).point(table.tolist() * 3), picture)
    matrix = np.linalg.solve(tone_mapping.to_xyz(own), _adapted(points) @ tone_mapping.to_xyz(points))
    colours = _srgb(np.clip(light[np.asarray(_rgb(picture))] @ matrix.T, 0, 1))
    return _with_alpha(PILImage.fromarray(colours), picture)


def _adapted(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The Bradford matrix that brings the white of `points` to D65."""
    here, there = (_BRADFORD @ tone_mapping.to_xyz(of).sum(1) for of in (points, tone_mapping.chromaticities(1)))
    return np.asarray(np.linalg.solve(_BRADFORD, (there / here)[:, None] * _BRADFORD))


def _light(levels: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def _srgb(light: NDArray[np.float64]) -> NDArray[np.uint8]:
    bent = np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(255 * bent).astype(np.uint8))
