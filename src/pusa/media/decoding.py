"""From the packets of a video track to upright RGB pictures of BT.709, as uint8 [H, W, 3].

The default conversion of FFmpeg's scaler would shift colours by half a pixel. So each conversion asks for exact
arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from av.codec import CodecContext
from av.container import InputContainer
from av.error import EOFError as EndOfStream
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pusa.errors import InputError
from pusa.media import orientation, tone_mapping
from pusa.media.images import Image, fit, over_white

_EXACT = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.BITEXACT
)
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""decoders that read the transparency of a codec; FFmpeg's own decoders ignore it"""
_PALETTES = ("pal8", "monob", "monow")
_UNSPECIFIED, _RESERVED = 2, (0, 3)
_MATRICES = {1, 2, 4, 5, 6, 7, 9}
"""the colour matrices, by their codes of H.273, that FFmpeg's scaler converts"""
_DOLBY_BASES = (1, 9)
"""the matrices of Dolby Vision that other decoders can show: BT.709 and BT.2020"""
_DOLBY = {"dvh1", "dvhe", "dva1", "dvav", "dav1"}
"""tags of tracks that may need a Dolby Vision decoder"""


def has_alpha_beside(stream: VideoStream) -> bool:
    """Whether the transparency of a VP8 or VP9 track is stored beside its pictures."""
    tags = {key.lower(): value for key, value in stream.metadata.items()}
    return stream.codec_context.name in _WITH_ALPHA and tags.get("alpha_mode") == "1"


def depends_on_its_start(stream: VideoStream) -> bool:
    """Whether frames after a key frame may need what stood before it: a palette, or a key frame of transparency."""
    return stream.codec_context.pix_fmt in _PALETTES or has_alpha_beside(stream)


def frames(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Decode the frames of a track from the present place on, with their transparency."""
    if not has_alpha_beside(stream):
        yield from container.decode(stream)
        return
    decoder: Any = CodecContext.create(_WITH_ALPHA[stream.codec_context.name], "r")
    assert isinstance(decoder, VideoCodecContext)
    decoder.extradata = stream.codec_context.extradata
    for packet in container.demux(stream):
        with suppress(EndOfStream):
            yield from decoder.decode(packet if packet.size else None)


def upright(frame: VideoFrame, squeeze: float) -> Image:
    """One decoded frame as RGB [H, W, 3]: turned and mirrored as its metadata states, with square pixels.

    squeeze: the width of a pixel divided by its height.
    """
    picture = _rgb(frame)
    if squeeze != 1:
        picture = fit(picture, (max(1, round(picture.shape[1] * squeeze)), picture.shape[0]), "stretch")
    return orientation.turned(picture, orientation.display_matrix(frame))


def check_colours(path: Path, stream: VideoStream, frame: VideoFrame) -> None:
    """Raise InputError if the colours of a track, by its first frame, cannot be converted; warn if it is HDR."""
    if _is_dolby(stream, frame) and frame.colorspace not in _DOLBY_BASES:
        raise InputError(f"{path} is Dolby Vision that only a Dolby decoder shows; export it as HDR10, HLG or SDR")
    if not frame.format.is_rgb and frame.colorspace not in {*_MATRICES, *_RESERVED}:
        raise InputError(f"{path} has a colour matrix (code {frame.colorspace}) that is not known; export it as BT.709")
    tone_mapping.tell(path, _colours(frame))


def _is_dolby(stream: VideoStream, frame: VideoFrame) -> bool:
    if any(frame.side_data.get(kind) is not None for kind in ("DOVI_METADATA", "DOVI_RPU_BUFFER")):
        return True
    try:
        return stream.codec_context.codec_tag in _DOLBY
    except UnicodeDecodeError:  # the tag is no text
        return False


def _rgb(frame: VideoFrame) -> Image:
    if frame.colorspace in _RESERVED and not frame.format.is_rgb:
        frame.colorspace = _UNSPECIFIED
    source = _colours(frame)
    if any(component.is_alpha for component in frame.format.components) or frame.format.has_palette:
        return over_white(_rgba(frame, source))
    if source is None:
        return _converted(frame, "rgb24")
    return tone_mapping.mapped(frame.reformat(format="rgb48le", interpolation=_EXACT), source)


def _rgba(frame: VideoFrame, source: tone_mapping.Colours | None) -> NDArray[np.uint8]:
    if source is None:
        return _converted(frame, "rgba")
    deep = np.asarray(frame.reformat(format="rgba64le", interpolation=_EXACT).to_ndarray(), np.uint16)
    colour = VideoFrame.from_ndarray(np.ascontiguousarray(deep[..., :3]), "rgb48le")
    return np.dstack([tone_mapping.mapped(colour, source), (deep[..., 3] // 257).astype(np.uint8)])


def _converted(frame: VideoFrame, format: str) -> NDArray[np.uint8]:
    return np.asarray(frame.reformat(format=format, interpolation=_EXACT).to_ndarray(), np.uint8)


def _colours(frame: VideoFrame) -> tone_mapping.Colours | None:
    return tone_mapping.colours(frame.color_trc, frame.color_primaries, _brightest(frame))


def _brightest(frame: VideoFrame) -> float:
    """The brightest light that the metadata of a frame state, in cd/m²; 0 if they state none."""
    level: Any = frame.side_data.get("CONTENT_LIGHT_LEVEL")
    if level is not None and (value := int(np.frombuffer(bytes(level), np.uint32)[0])):
        return float(value)
    display: Any = frame.side_data.get("MASTERING_DISPLAY_METADATA")
    if display is None:
        return 0.0
    values = np.frombuffer(bytes(display), np.int32)  # rationals: six primaries, two of white, darkest, brightest
    return float(values[18] / values[19]) if values[21] and values[19] else 0.0
