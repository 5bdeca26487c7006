"""The software and the device that decide the bits of a clip. Torch is imported only where a GPU may be."""

from __future__ import annotations

import ctypes
import platform
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from pusa import __version__

_CUDA_DRIVERS = ("libcuda.so.1", "nvcuda.dll")
_ROCM_DEVICE = Path("/dev/kfd")


def versions() -> dict[str, str]:
    """The versions of pusa, Python, and the libraries that compute a clip."""
    packages = {package: version(package) for package in ("torch", "diffusers", "transformers", "peft")}
    return {"pusa": __version__, "python": platform.python_version(), **packages}


def gpu_name() -> str | None:
    """The name of the GPU that torch uses, or None. Without the driver of a GPU, torch is not asked."""
    if not _has_driver():
        return None
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _has_driver() -> bool:
    for library in _CUDA_DRIVERS:
        with suppress(OSError):
            ctypes.CDLL(library)
            return True
    return _ROCM_DEVICE.exists()
