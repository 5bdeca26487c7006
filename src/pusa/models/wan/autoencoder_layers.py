"""The convolution and the norm of Wan's autoencoder, in less time on a CPU.

PyTorch computes a float32 convolution on a CPU with oneDNN only if it is large: for one clip, if channels * frames *
height is above 20480 (`ConvParams::use_mkldnn` in its aten/src/ATen/native/Convolution.cpp). For a smaller one it
writes the input once for each value of the kernel, and multiplies matrices. Most layers of a published Wan are above
the limit. Those of the embedded autoencoder are below it, and oneDNN is 1.4 to 8 times as fast for their kernels of 3 x
3 pixels. So `CPUConvolution` always calls oneDNN. It also omits the copies and products of the zeros around a clip.
`CPUNorm` needs fewer passes over the clip. `python benchmarks/decode.py` measures both together.

Latents and pixels differ from those of diffusers by rounding. The autoencoder keeps its class, its parameters and their
names, and its saved folder. Both layers compute exactly what diffusers computes on another device or in another type,
if a gradient is needed, and under torch.compile.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan

# Both classes are private. test_the_layers_are_those_of_diffusers (tests/models/wan/test_autoencoder_layers.py) fails
# when they move, and the tests beside it fail when they compute something else.
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanRMS_norm
from torch import Tensor
from torch.nn import functional as F

_MIN_NORM = 1e-12
"""what torch.nn.functional.normalize divides by at least"""


class CPUConvolution(WanCausalConv3d):
    """The stock convolution, computed by oneDNN whatever its size."""

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        """Convolve x [B, C, T, H, W]. cache_x: up to two frames before x, [B, C, 1 or 2, H, W]; zeros if missing."""
        # A kernel one pixel wide is a product of matrices, and oneDNN is slower for it.
        pointwise = self.kernel_size[1:] == (1, 1)
        if pointwise or not (_applies(x, self.weight) and torch.backends.mkldnn.enabled):
            stock: Tensor = super().forward(x, cache_x)
            return stock
        width, _, height, _, missing, _ = self._padding
        if cache_x is not None and missing:
            x = torch.cat([cache_x, x], dim=2)
            missing -= cache_x.shape[2]
        weight = self.weight
        if x.shape[2] + missing == self.kernel_size[0]:  # one frame after zeros: the rest of the kernel is enough
            weight = weight[:, :, missing:]
        elif missing:
            x = F.pad(x, (0, 0, 0, 0, missing, 0))
        # torch.nn.functional.conv3d cannot be told to use oneDNN. torch.utils.mkldnn calls this function, too.
        return torch.mkldnn_convolution(
            x, weight, self.bias, (0, height, width), self.stride, self.dilation, self.groups
        )


class CPUNorm(WanRMS_norm):
    """The stock norm over channels, with two tensors of the size of the clip in place of four."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x [B, C, ...] / its norm over C * sqrt(C) * gamma."""
        if not _applies(x, self.gamma):
            stock: Tensor = super().forward(x)
            return stock
        norm = x.square().sum(1, keepdim=True).sqrt_().clamp_min_(_MIN_NORM)
        scaled: Tensor = (x * (self.scale / norm)).mul_(self.gamma)
        return scaled


def _applies(x: Tensor, parameter: Tensor) -> bool:
    """Return whether x is in float32 on a CPU, no gradient is needed, and nothing is being compiled."""
    gradient = torch.is_grad_enabled() and (x.requires_grad or parameter.requires_grad)
    fits = x.device.type == "cpu" and x.dtype == parameter.dtype == torch.float32
    return fits and not gradient and not torch.compiler.is_compiling()


def upgrade(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Convert the layers of a stock autoencoder in place and return it. Layers of other classes stay as they are.

    On CPUs other than x86 with AVX2 or AVX512, for which nothing was measured, all layers stay.
    """
    onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    measured = onednn and torch.backends.cpu.get_cpu_capability().startswith("AVX")
    for layer in vae.modules() if measured else ():
        if type(layer) is WanCausalConv3d:
            layer.__class__ = CPUConvolution
        elif type(layer) is WanRMS_norm and layer.channel_first and not isinstance(layer.bias, Tensor):
            layer.__class__ = CPUNorm
    return vae
