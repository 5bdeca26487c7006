"""Wan with one timestep per latent frame: vectorized timestep adaptation (arXiv 2507.16116, section 2.3.1).

The network stays diffusers' `WanTransformer3DModel`, with the same parameters, keys and saved folder. For a timestep
(B, F), two forwards are replaced: that of the model and that of the block. The time embedder then runs on F rows, and
each block broadcasts its modulation (B, F, 6, D) over the h*w tokens of a frame. So no tensor has tokens*6*D values,
which are gigabytes at 14B. If only some frames of a clip are given, the rotary embedding is replaced, too.

Both forwards repeat the stock operations in the stock order. If all rows of a clip are equal, they are one timestep and
the stock forward runs: a matrix product over F rows may be rounded differently from one over a single row, and the
result of the base model must be reproduced bit for bit.

The forwards rely on private parts of diffusers, such as the order of operations in the block. The tests in
tests/models/wan/test_transformer.py compare them with the stock forward, so they fail when diffusers changes it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import torch
from diffusers import WanTransformer3DModel

# The private registry tells the caches of diffusers what a block returns. For _modeling_parallel, see _cp_plan.
# test_caches_skip_as_often_as_in_the_stock_model (tests/models/wan/test_compatibility.py) fails when it moves.
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models._modeling_parallel import ContextParallelInput, ParallelConfig
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed, WanTransformerBlock
from diffusers.utils import apply_lora_scale
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from pusa.errors import InputError
from pusa.models.wan import inference, per_clip
from pusa.models.wan.partial_blocks import forward_some
from pusa.models.wan.per_clip import TextMemory

_EXACT_DTYPES = (torch.float32, torch.float64, torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)


class FrameIndex(nn.Module):
    """The latent frame of each token. It is a module, so that `_cp_plan` can split its output like that of `rope`."""

    def forward(self, frames: int, tokens_per_frame: int, device: torch.device) -> Tensor:
        """Return int64 [1, frames * tokens_per_frame]."""
        index = torch.arange(frames, device=device)
        return index.repeat_interleave(tokens_per_frame, output_size=frames * tokens_per_frame).unsqueeze(0)


# WanRotaryPosEmbed is private. A subclass keeps its buffers and its entry in `_cp_plan`.
# test_rotary_rows_of_visible_frames (tests/models/wan/test_frame_positions.py) fails when it moves.
class FrameRotary(WanRotaryPosEmbed):
    """The stock rotary embedding, which also takes the positions of the given latent frames.

    kept: during `per_clip.walk`, the last result and what it was computed from; None outside.
    """

    kept: dict[tuple[Any, ...], tuple[Tensor, Tensor]] | None = None

    def forward(self, hidden_states: Tensor, frame_positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return cos and sin, each [1, F * h * w, 1, head dim], for latents [B, C, F, H, W].

        frame_positions: int64 [F], the absolute latent frames, below `rope_max_seq_len`; None: 0 to F - 1. The result
        has the rows that these frames have in the result for the whole clip.
        """
        if self.kept is None or torch.compiler.is_compiling():
            return self._tables(hidden_states, frame_positions)
        positions = None if frame_positions is None else tuple(frame_positions.tolist())
        key = (hidden_states.shape[2:], hidden_states.device, positions)
        if key not in self.kept:
            self.kept.clear()
            self.kept[key] = self._tables(hidden_states, frame_positions)
        return self.kept[key]

    def _tables(self, hidden_states: Tensor, frame_positions: Tensor | None) -> tuple[Tensor, Tensor]:
        if frame_positions is None:
            stock: tuple[Tensor, Tensor] = super().forward(hidden_states)
            return stock
        batch, channels, _, height, width = hidden_states.shape
        frames = int(frame_positions.max()) + 1
        if frames > self.max_seq_len:
            last = self.max_seq_len - 1
            raise InputError(f"Latent frame {frames - 1} is outside the model's positions, 0 to {last}.")
        # The stock forward reads only the shape, so a clip of all frames costs no memory.
        clip = hidden_states.new_empty(1).expand(batch, channels, frames * self.patch_size[0], height, width)
        rows = frame_positions.to(hidden_states.device)
        cos, sin = (x.unflatten(1, (frames, -1))[:, rows].flatten(1, 2) for x in super().forward(clip))
        return cos, sin


def _folded(x: Tensor, rows: Tensor) -> Tensor:
    """Reshape tokens [B, L, D] to [B, F, L / F, D], for rows [B, F, D]."""
    return x.reshape(x.shape[0], rows.shape[1], -1, x.shape[2])


def _modulate(x: Tensor, scale: Tensor, shift: Tensor, frame_ids: Tensor | None) -> Tensor:
    """Return x * (1 + scale) + shift for tokens x [B, L, D] and rows scale, shift [B, F, D].

    frame_ids: int64 [1, L], the row of each token; None if the tokens are whole frames in order.
    """
    if frame_ids is None:
        return (_folded(x, scale) * (1 + scale.unsqueeze(2))).add_(shift.unsqueeze(2)).flatten(1, 2)
    return (x * (1 + scale).index_select(1, frame_ids[0])).add_(shift.index_select(1, frame_ids[0]))


def _add_gated(x: Tensor, branch: Tensor, gate: Tensor, frame_ids: Tensor | None) -> Tensor:
    """Return x + branch * gate in float32, for tokens x, branch [B, L, D] and rows gate [B, F, D].

    frame_ids: as in `_modulate`. The sum overwrites the product, not `branch`, which a cache may hold.
    """
    if frame_ids is None:
        return (_folded(branch, gate) * gate.unsqueeze(2)).flatten(1, 2).add_(x)
    return (branch * gate.index_select(1, frame_ids[0])).add_(x)


class VectorWanTransformerBlock(WanTransformerBlock):
    """The stock block, which also takes one row of modulation per frame, and computes some of its tokens on request."""

    interceptor: Callable[..., Tensor] | None = None
    """Called instead of the block, with its call and its arguments, see `partial_blocks.blocks_run_by`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = super().__call__
        return call(*args, **kwargs) if self.interceptor is None else self.interceptor(call, *args, **kwargs)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        rotary_emb: tuple[Tensor, Tensor],
        frame_ids: Tensor | None = None,
        tokens: Tensor | None = None,
        attention_mass: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        """Return hidden states [B, L, D].

        temb: [B, 6, D] (one timestep), [B, L, 6, D] (per token) or [B, F, 6, D] (per frame, tokens in frame order).
        frame_ids: int64 [1, L], the row of each token, for a shard of the sequence that may begin inside a frame.
        tokens: int64 [n], the tokens that are computed; the result is then that of `partial_blocks.forward_some`.
        """
        if tokens is not None:
            return forward_some(
                self, hidden_states, encoder_hidden_states, temb, rotary_emb, tokens, attention_mass=attention_mass
            )
        if temb.ndim == 3:
            temb = temb.unsqueeze(1)
        elif frame_ids is None and temb.shape[1] == hidden_states.shape[1]:
            stock: Tensor = super().forward(hidden_states, encoder_hidden_states, temb, rotary_emb)
            return stock

        rows = (self.scale_shift_table.unsqueeze(0) + temb.float()).unbind(2)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = rows

        x = _modulate(self.norm1(hidden_states.float()), scale, shift, frame_ids).type_as(hidden_states)
        attended = self.attn1(x, None, None, rotary_emb)
        hidden_states = _add_gated(hidden_states, attended, gate, frame_ids).type_as(hidden_states)

        x = self.norm2(hidden_states.float()).type_as(hidden_states)
        hidden_states = hidden_states + self.attn2(x, encoder_hidden_states, None, None)

        x = _modulate(self.norm3(hidden_states.float()), ffn_scale, ffn_shift, frame_ids).type_as(hidden_states)
        fed = self.ffn(x).float()
        return _add_gated(hidden_states, fed, ffn_gate, frame_ids).type_as(hidden_states)


TransformerBlockRegistry.register(
    VectorWanTransformerBlock,
    TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None),
)


class VectorWanTransformer3DModel(WanTransformer3DModel):
    """`WanTransformer3DModel` whose timestep may be (B, F): 1000 * sigma of every latent frame, in float32.

    Load it from a stock folder with `from_pretrained`, or convert a loaded stock model with `upgrade`.
    `save_pretrained` writes a stock folder.
    """

    # Private names that diffusers reads; test_loading_with_a_device_map, test_compile_repeated_blocks and
    # test_two_processes_share_the_tokens_of_a_clip fail when they move. _cp_plan names the tensors that are split over
    # processes. The stock entry "" splits a two-dimensional timestep by tokens; one per frame must stay whole.
    _no_split_modules = ["VectorWanTransformerBlock"]
    _repeated_blocks = ["VectorWanTransformerBlock"]
    _cp_plan = {name: plan for name, plan in WanTransformer3DModel._cp_plan.items() if name != ""} | {
        "frame_index": {0: ContextParallelInput(split_dim=1, expected_dims=2, split_output=True)}
    }

    text_memory: TextMemory | None = None
    """what `per_clip.walk` keeps of texts; `WanBackbone.velocity` uses it"""

    # diffusers takes the keys of the configuration from this signature.
    @functools.wraps(WanTransformer3DModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._adopt_blocks()

    def _adopt_blocks(self) -> None:
        self.frame_index = FrameIndex()
        self.rope.__class__ = FrameRotary
        for block in self.blocks:
            block.__class__ = VectorWanTransformerBlock
            per_clip.adopt(block.attn2)
            inference.adopt(block)

    @classmethod
    def upgrade(cls, model: WanTransformer3DModel) -> VectorWanTransformer3DModel:
        """Convert a stock model to this class in place and return it. An upgraded model is returned unchanged.

        The model may have LoRAs, quantised layers and layerwise casting. Raises InputError if the forward of the model
        or of a block has been replaced: by hooks for offloading or dispatch, caches, parallelism, compilation or FSDP.
        """
        if isinstance(model, cls):
            return model
        if type(model) is not WanTransformer3DModel:
            raise InputError(
                f"Only a plain diffusers WanTransformer3DModel can be upgraded, not a {type(model).__name__}: "
                "pass the transformer before anything wraps it."
            )
        for name, module in [("the model", model), *((f"block {i}", block) for i, block in enumerate(model.blocks))]:
            if module is not model and type(module) is not WanTransformerBlock:
                reason = f"is a {type(module).__name__} instead of a WanTransformerBlock"
            elif "forward" in vars(module):
                reason = "already has hooks (offload, dispatch, cache or parallelism)"
            elif module._compiled_call_impl is not None:  # private, set by nn.Module.compile
                reason = "is already compiled"
            else:
                continue
            raise InputError(
                f"Cannot upgrade the Wan transformer because {name} {reason}: "
                "upgrade right after loading, or load with VectorWanTransformer3DModel.from_pretrained."
            )
        model.__class__ = cls
        model._adopt_blocks()
        return model  # type: ignore[no-any-return]

    def to_json_string(self) -> str:
        """Return the configuration as JSON. It has the stock class name, even if FSDP has renamed the class."""
        config = json.loads(super().to_json_string())
        config["_class_name"] = WanTransformer3DModel.__name__
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor | None = None,
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        frame_positions: Tensor | None = None,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predict the velocity, epsilon - x0, of latents [B, C, F, H, W], in the same shape.

        timestep: 1000 * sigma, 0 to 1000. (B, F) is one per latent frame, in float32, float64 or an integer type. (B,)
        and (B, F * h * w), one per clip or token, give the stock result bit for bit. So does (B, F) with equal values
        in all frames of a clip, except inside torch.compile, which cannot read values. Raises InputError for another
        shape, and for one per frame or token in half precision. (bfloat16 would round 937 to 936.)

        encoder_hidden_states: the text, [B, N, text_dim]. frame_positions: int64 [F], the absolute latent frames, from
        which attention gets their distances. None and 0 to F - 1 are the stock positions. With other positions, the
        forward per frame runs also for a timestep (B,), and a timestep per token raises InputError.
        """
        per_frame = self._is_per_frame(hidden_states, timestep)
        positions = None if frame_positions is None or is_beginning(frame_positions) else frame_positions
        if positions is not None:
            return self._forward_per_frame(  # type: ignore[no-any-return]
                hidden_states,
                self._per_frame(hidden_states, timestep, per_frame),
                encoder_hidden_states,
                encoder_hidden_states_image,
                return_dict=return_dict,
                attention_kwargs=attention_kwargs,
                positions=positions,
            )
        if per_frame and not torch.compiler.is_compiling() and bool((timestep == timestep[:, :1]).all()):
            timestep, per_frame = timestep[:, 0], False
        forward = self._forward_per_frame if per_frame else super().forward
        return forward(  # type: ignore[no-any-return]
            hidden_states,
            timestep,
            encoder_hidden_states,
            encoder_hidden_states_image,
            return_dict=return_dict,
            attention_kwargs=attention_kwargs,
        )

    def _per_frame(self, latents: Tensor, timestep: Tensor, per_frame: bool) -> Tensor:
        """Return the timestep as (B, F), for frames at given positions."""
        if per_frame:
            return timestep
        if timestep.ndim == 2:
            raise InputError("Frame positions cannot be combined with timesteps per token: give one per latent frame.")
        return timestep[:, None].expand(latents.shape[0], latents.shape[2] // self.config.patch_size[0])

    def _is_per_frame(self, latents: Tensor, timestep: Tensor) -> bool:
        batch = latents.shape[0]
        frames, height, width = (n // p for n, p in zip(latents.shape[2:], self.config.patch_size, strict=True))
        tokens = frames * height * width
        shape = tuple(timestep.shape)
        if timestep.ndim == 1 and shape[0] in (1, batch):
            return False
        if shape not in ((batch, frames), (batch, tokens)):
            raise InputError(
                f"A timestep of shape {shape} does not fit latents of shape {tuple(latents.shape)}: give ({batch},), "
                f"({batch}, {frames}) for one per latent frame, or ({batch}, {tokens}) for one per token."
            )
        if timestep.dtype not in _EXACT_DTYPES:
            raise InputError(
                f"Timesteps per frame or token are {timestep.dtype}, which rounds them (bfloat16 makes 936 of 937): "
                "pass 1000 * sigma in float32, and with FSDP mixed precision set cast_forward_inputs=False."
            )
        if shape[1] == frames:
            return True
        if self._is_context_parallel:
            raise InputError(
                f"Timesteps per token (shape {shape}) are not split over processes under context parallelism: "
                f"give one per latent frame, shape ({batch}, {frames})."
            )
        return False

    def _resolve_parallel_config(self, config: Any) -> ParallelConfig:
        """Return diffusers' configuration, also on a CPU; diffusers divides by the number of accelerators.

        It is private. test_two_processes_share_the_tokens_of_a_clip (test_compatibility.py) fails when it moves.
        """
        if torch.accelerator.device_count():
            return super()._resolve_parallel_config(config)  # type: ignore[no-any-return]
        whole = config if isinstance(config, ParallelConfig) else ParallelConfig(context_parallel_config=config)
        split = whole.context_parallel_config
        mesh = split.mesh or init_device_mesh("cpu", split.mesh_shape, mesh_dim_names=split.mesh_dim_names)
        whole.setup(dist.get_rank(), dist.get_world_size(), torch.device("cpu"), mesh=mesh)
        self._parallel_config = whole
        return whole

    @property
    def _is_context_parallel(self) -> bool:
        return self._parallel_config is not None and self._parallel_config.context_parallel_config is not None

    @apply_lora_scale("attention_kwargs")  # type: ignore[untyped-decorator]
    def _forward_per_frame(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor | None,
        *,
        return_dict: bool,
        attention_kwargs: dict[str, Any] | None,
        positions: Tensor | None = None,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        batch, _, _, height, width = hidden_states.shape
        p_t, p_h, p_w = self.config.patch_size
        frames, height, width = timestep.shape[1], height // p_h, width // p_w

        rotary_emb = self.rope(hidden_states) if positions is None else self.rope(hidden_states, positions)
        frame_ids = None
        if self._is_context_parallel:
            frame_ids = self.frame_index(frames, height * width, hidden_states.device)
        x = self.patch_embedding(hidden_states).flatten(2).transpose(1, 2).contiguous()

        temb, modulation, text, image = self.condition_embedder(
            timestep.flatten(), encoder_hidden_states, encoder_hidden_states_image, timestep_seq_len=frames
        )
        modulation = modulation.unflatten(2, (6, -1))
        if image is not None:
            text = torch.cat([image, text], dim=1)

        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                # private; test_gradients_with_and_without_checkpointing (test_transformer.py) fails when it moves
                x = self._gradient_checkpointing_func(block, x, text, modulation, rotary_emb, frame_ids)
            else:
                x = block(x, text, modulation, rotary_emb, frame_ids)

        rows = self.scale_shift_table.unsqueeze(0).to(temb.device) + temb.unsqueeze(2)
        shift, scale = rows.to(x.device).unbind(2)
        x = _modulate(self.norm_out(x.float()), scale, shift, frame_ids).type_as(x)
        x = self.proj_out(x)

        x = x.reshape(batch, frames, height, width, p_t, p_h, p_w, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
        sample = x.flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)


def is_beginning(frames: Tensor) -> bool:
    """Return whether `frames`, int64 [V], are 0 to V - 1."""
    return bool((frames == torch.arange(len(frames), device=frames.device)).all())
