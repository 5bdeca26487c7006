"""How similar frames are to the truth: PSNR, SSIM and ΔE2000, computed by scikit-image."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from pusa.errors import InputError
from pusa.media.images import Frames, Image

BEST = 100.0
"""the PSNR of equal pictures in dB, so that means stay finite"""
SMALLEST = 7
"""the window of SSIM, in pixels"""


def compare(picture: Image, truth: Image) -> dict[str, float]:
    """Compare two uint8 pictures [H, W, 3] of one size: "psnr" in dB (at most 100), "ssim" in [-1, 1], "delta_e".

    SSIM: Wang et al. 2004. delta_e: the mean ΔE2000 (CIE 142-2001); a difference of 1 is barely visible. Raises
    InputError if the sizes differ, or if a side is below 7 pixels.
    """
    if picture.shape != truth.shape:
        shapes = [f"{p.shape[1]}x{p.shape[0]}" for p in (picture, truth)]
        raise InputError(f"pictures of {shapes[0]} and {shapes[1]} cannot be compared; resize them to one size")
    if min(picture.shape[:2]) < SMALLEST:
        raise InputError(
            f"pictures of {picture.shape[1]}x{picture.shape[0]} are too small to compare; give 7x7 or more"
        )
    same = np.array_equal(picture, truth)
    psnr = BEST if same else min(BEST, float(peak_signal_noise_ratio(truth, picture, data_range=255)))
    ssim = float(structural_similarity(truth, picture, channel_axis=-1, data_range=255))
    delta = float(np.mean(deltaE_ciede2000(rgb2lab(truth), rgb2lab(picture))))
    return {"psnr": psnr, "ssim": ssim, "delta_e": delta}


def compare_clips(frames: Frames, truth: Frames, which: Iterable[int] | None = None) -> dict[str, float]:
    """The mean of `compare` over frames (all, or `which`); "psnr" is computed from the mean squared error."""
    chosen = range(len(truth)) if which is None else list(which)
    each = [compare(frames[i], truth[i]) for i in chosen]
    error = np.mean([np.square(frames[i].astype(float) - truth[i]).mean() for i in chosen])
    psnr = BEST if error == 0 else min(BEST, 20 * np.log10(255) - 10 * np.log10(error))
    return {
        "psnr": float(psnr),
        "ssim": float(np.mean([one["ssim"] for one in each])),
        "delta_e": float(np.mean([one["delta_e"] for one in each])),
    }
