"""Pusa nodes for ComfyUI's own Wan models: one noise level per latent frame.

ComfyUI loads this folder from `custom_nodes/`. The sampler and the timestep matrix are those of `pusa.core`, which
needs torch only.
"""

from __future__ import annotations

try:
    import pusa.core  # noqa: F401
except ImportError as error:
    raise ImportError(
        "The Pusa nodes need the package pusa in ComfyUI's Python: run `python -m pip install --no-deps FOLDER` with "
        "this Python, where FOLDER is your clone of the repository of pusa."
    ) from error

from .conditions import PusaClip, PusaPicture
from .extension import PusaExtend, PusaJoin
from .matrix import PusaMatrix, PusaMatrixPreview
from .sampler import PusaSampler
from .stock_samplers import PusaStockSamplers

_NODES = (
    PusaPicture,
    PusaClip,
    PusaExtend,
    PusaJoin,
    PusaMatrix,
    PusaMatrixPreview,
    PusaSampler,
    PusaStockSamplers,
)

NODE_CLASS_MAPPINGS = {node.__name__: node for node in _NODES}
NODE_DISPLAY_NAME_MAPPINGS = {node.__name__: node.TITLE for node in _NODES}
__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
