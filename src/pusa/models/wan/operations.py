"""Count the operations of a training step on the layers of Wan.

Operations are counted in the usual way: matrix products and attention only, and two operations for a multiplication
with its addition. A linear layer with i inputs and o outputs needs 2·i·o operations per row in the forward pass. It
needs as many again for the gradient of its input if anything before it is trained, and as many again for the gradient
of its weight if the weight is trained. Attention of L queries over K keys of width D needs 4·L·K·D in the forward pass,
and 10·L·K·D in the backward pass, which computes the scores again. The rows are tokens, text tokens or latent frames.
The modulation for vectorized timesteps has only F rows (arXiv 2507.16116, section 2.3.1), so its cost is small.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

from diffusers import WanTransformer3DModel
from peft.tuners.lora import LoraLayer
from torch import nn

from pusa.models.backbone import Flops
from pusa.models.wan.text import TOKENS


@dataclass(frozen=True)
class _Product:
    """A linear layer, or the patch embedding. rank: of all its LoRAs together. frozen: whether its weight is frozen."""

    name: str
    rows: str  # "tokens" | "text" | "frames"
    inputs: int
    outputs: int
    rank: int
    frozen: bool

    @property
    def trains(self) -> bool:
        return bool(self.rank) or not self.frozen

    def forward(self, rows: int) -> int:
        return 2 * rows * (self.inputs * self.outputs + self.rank * (self.inputs + self.outputs))

    def backward(self, rows: int, input_learns: bool) -> int:
        own = self.inputs * self.outputs * (input_learns + (not self.frozen))
        adapter = self.rank * (self.inputs + self.outputs + self.outputs + self.inputs * input_learns)
        return 2 * rows * (own + adapter)


class StepCounter:
    """Counts the operations of a training step of a transformer, from its trained weights and its LoRAs.

    The transformer may be on the meta device, so that a step can be counted before weights are read.
    """

    def __init__(self, transformer: WanTransformer3DModel) -> None:
        self.transformer = transformer
        config = transformer.config
        self.width = int(config.num_attention_heads * config.attention_head_dim)
        self.blocks = int(config.num_layers)

    @cached_property
    def _products(self) -> list[_Product]:
        found = []
        for name, module in self.transformer.named_modules():
            if isinstance(module, LoraLayer):
                base, rank = module.get_base_layer(), sum(module.r[a] for a in module.active_adapters if a in module.r)
            else:
                base, rank = module, 0
            if ".base_layer" in name or ".lora_" in name or not isinstance(base, (nn.Linear, nn.Conv3d)):
                continue
            inputs = base.in_features if isinstance(base, nn.Linear) else base.in_channels * prod(base.kernel_size)
            outputs = base.out_features if isinstance(base, nn.Linear) else base.out_channels
            found.append(_Product(name, _rows_of(name), inputs, outputs, rank, not base.weight.requires_grad))
        return found

    def _trains(self, prefix: str) -> bool:
        return any(p.requires_grad for name, p in self.transformer.named_parameters() if name.startswith(prefix))

    def __call__(self, clips: int, tokens: int, frames: int, *, text: int = TOKENS) -> Flops:
        """Return the operations of the forward and backward pass for `clips` clips of equal length.

        tokens, frames: latent tokens and latent frames of all clips together. text: text tokens of each clip.
        """
        rows = {"tokens": tokens, "text": clips * text, "frames": frames}
        learns = self._learners
        forward = backward = again = 0
        for product in self._products:
            count = product.forward(rows[product.rows])
            forward += count
            backward += product.backward(rows[product.rows], learns[product.name])
            again += count * learns.get(_block_of(product.name), False)
        for block in range(self.blocks):
            for layer, keys in (("attn1", tokens // clips), ("attn2", text)):
                count = 4 * tokens * keys * self.width
                forward += count
                backward += count * 5 // 2 * learns[f"blocks.{block}.{layer}"]
                again += count * learns[f"blocks.{block}"]
        return Flops(forward, backward, again if self.transformer.is_gradient_checkpointing else 0)

    @cached_property
    def _learners(self) -> dict[str, bool]:
        """For each linear layer and attention: whether its input depends on trained weights. For blocks: their output.

        This follows the data: text and time embeddings, patches, then block after block.
        """
        by_name = {product.name: product for product in self._products}
        text = modulation = stream = False
        learns: dict[str, bool] = {}
        for name in by_name:
            if name.startswith("condition_embedder.text_embedder"):
                learns[name] = text
                text |= by_name[name].trains
            elif name.startswith("condition_embedder.time"):
                learns[name] = modulation
                modulation |= by_name[name].trains
            elif name == "patch_embedding":
                learns[name] = False
                stream = self._trains(name)
        for block in range(self.blocks):
            at = f"blocks.{block}."
            modulated = stream or modulation or self._trains(f"{at}scale_shift_table")
            for name in (n for n in by_name if n.startswith(f"{at}attn1.to_") and not n.endswith("to_out.0")):
                learns[name] = modulated
            mixed = modulated or self._trains(f"{at}attn1.to_q") or self._trains(f"{at}attn1.to_k")
            mixed = mixed or self._trains(f"{at}attn1.to_v") or self._trains(f"{at}attn1.norm")
            learns[f"{at}attn1"] = learns[f"{at}attn1.to_out.0"] = mixed
            stream = mixed or self._trains(f"{at}attn1.to_out")
            learns[f"{at}attn2.to_q"] = stream or self._trains(f"{at}norm2")
            learns[f"{at}attn2.to_k"] = learns[f"{at}attn2.to_v"] = text
            crossed = (
                learns[f"{at}attn2.to_q"]
                or text
                or any(self._trains(f"{at}attn2.{part}") for part in ("to_q", "to_k", "to_v", "norm"))
            )
            learns[f"{at}attn2"] = learns[f"{at}attn2.to_out.0"] = crossed
            stream = crossed or self._trains(f"{at}attn2.to_out")
            learns[f"{at}ffn.net.0.proj"] = stream or modulated
            learns[f"{at}ffn.net.2"] = stream or modulated or by_name[f"{at}ffn.net.0.proj"].trains
            stream = learns[f"blocks.{block}"] = learns[f"{at}ffn.net.2"] or by_name[f"{at}ffn.net.2"].trains
        learns["proj_out"] = stream or modulation or self._trains("scale_shift_table")
        return learns


def block_operations(transformer: WanTransformer3DModel, tokens: int, computed: int) -> int:
    """Return the operations of the forward pass of a block for one clip, if `computed` of its `tokens` are computed.

    The keys and values of all tokens are computed. The keys and values of the text are not counted: they do not depend
    on the noise level.
    """
    config = transformer.config
    width = int(config.num_attention_heads * config.attention_head_dim)
    projections = 2 * width * width * (4 * computed + 2 * tokens)
    feed_forward = 4 * width * int(config.ffn_dim) * computed
    attention = 4 * width * computed * (tokens + TOKENS)
    return projections + feed_forward + attention if computed else 0


def _block_of(name: str) -> str:
    """Return `blocks.3` for `blocks.3.attn1.to_q`."""
    return ".".join(name.split(".")[:2])


def _rows_of(name: str) -> str:
    """Return what the rows of a linear layer of Wan are: "tokens", "text" or "frames"."""
    if name.startswith("condition_embedder.time"):
        return "frames"
    if name.startswith("condition_embedder.text") or name.endswith(("attn2.to_k", "attn2.to_v")):
        return "text"
    return "tokens"
