"""Wan with one timestep per latent frame: vectorized timestep adaptation (arXiv 2507.16116, section 2.3.1).

The network stays diffusers' `WanTransformer3DModel`: same parameters, same keys, same saved folder. Two forwards differ
when a (B, F) timestep is given, and the rotary embedding differs when only some frames of a clip are given. With a
(B, F) timestep the time embedder runs on F rows instead of one, and every block broadcasts its (B, F, 6, D) modulation
over the h*w tokens of a frame, so nothing of size tokens*6*D is ever made; the token-expanded form that diffusers
accepts costs gigabytes at 14B. Both forwards repeat the stock arithmetic in the stock order. Equal rows are one
timestep for the clip and take the stock path: a matrix product over F rows may round otherwise than one over a single
row, and the base model's own result has to come out bit for bit.

Parts of diffusers that are not public are used here: the block registry, the context-parallel plan, the order of
operations inside the block and the rotary embedding's class. The tests compare with the stock forward, so they fail
when any of these moves.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models._modeling_parallel import ContextParallelInput, ParallelConfig
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed, WanTransformerBlock
from diffusers.utils import apply_lora_scale
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from pusa.errors import InputError

_EXACT_DTYPES = (torch.float32, torch.float64, torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)


class FrameIndex(nn.Module):
    """The latent frame that each token belongs to. A module, so that `_cp_plan` can shard its output like rope's."""

    def forward(self, frames: int, tokens_per_frame: int, device: torch.device) -> Tensor:
        """Return int64 [1, frames * tokens_per_frame]."""
        index = torch.arange(frames, device=device)
        return index.repeat_interleave(tokens_per_frame, output_size=frames * tokens_per_frame).unsqueeze(0)


# WanRotaryPosEmbed is private: a subclass keeps its buffers and its entry in `_cp_plan`, which splits its output over
# processes. test_rotary_rows_of_visible_frames (tests/models/wan/test_frame_positions.py) fails when it moves.
class FrameRotary(WanRotaryPosEmbed):
    """The stock rotary embedding, which also takes the latent frames of the clip that are given."""

    def forward(self, hidden_states: Tensor, frame_positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return cos and sin, each [1, F * h * w, 1, head dim], for latents [B, C, F, H, W].

        frame_positions, int64 [F]: the absolute latent frame of each given one, below `rope_max_seq_len`; the result
        is then the rows of these frames in that of the whole clip. None: 0 ... F - 1.
        """
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
    """Tokens [B, L, D] by frame, [B, F, L / F, D], for rows [B, F, D]."""
    return x.reshape(x.shape[0], rows.shape[1], -1, x.shape[2])


def _modulate(x: Tensor, scale: Tensor, shift: Tensor, frame_ids: Tensor | None) -> Tensor:
    """x * (1 + scale) + shift for tokens x [B, L, D] and rows scale, shift [B, F, D]; frame_ids [1, L] or None."""
    if frame_ids is None:
        return (_folded(x, scale) * (1 + scale.unsqueeze(2)) + shift.unsqueeze(2)).flatten(1, 2)
    return x * (1 + scale).index_select(1, frame_ids[0]) + shift.index_select(1, frame_ids[0])


def _add_gated(x: Tensor, branch: Tensor, gate: Tensor, frame_ids: Tensor | None) -> Tensor:
    """x + branch * gate for tokens x, branch [B, L, D] and rows gate [B, F, D]; frame_ids as in `_modulate`."""
    if frame_ids is None:
        return x + (_folded(branch, gate) * gate.unsqueeze(2)).flatten(1, 2)
    return x + branch * gate.index_select(1, frame_ids[0])


class VectorWanTransformerBlock(WanTransformerBlock):
    """The stock block, which also takes modulation rows per frame."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        rotary_emb: tuple[Tensor, Tensor],
        frame_ids: Tensor | None = None,
    ) -> Tensor:
        """Return hidden states [B, L, D].

        temb is [B, 6, D] (one timestep), [B, L, 6, D] (per token) or [B, F, 6, D] (per frame, tokens in frame order).
        frame_ids, int64 [1, L], names the row of every token where the sequence is a shard that may cut a frame.
        """
        per_token = temb.ndim == 4 and frame_ids is None and temb.shape[1] == hidden_states.shape[1]
        if temb.ndim != 4 or per_token:
            stock: Tensor = super().forward(hidden_states, encoder_hidden_states, temb, rotary_emb)
            return stock

        rows = (self.scale_shift_table.unsqueeze(0) + temb.float()).unbind(2)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = rows

        x = _modulate(self.norm1(hidden_states.float()), scale, shift, frame_ids).type_as(hidden_states)
        attended = self.attn1(x, None, None, rotary_emb)
        hidden_states = _add_gated(hidden_states.float(), attended, gate, frame_ids).type_as(hidden_states)

        x = self.norm2(hidden_states.float()).type_as(hidden_states)
        hidden_states = hidden_states + self.attn2(x, encoder_hidden_states, None, None)

        x = _modulate(self.norm3(hidden_states.float()), ffn_scale, ffn_shift, frame_ids).type_as(hidden_states)
        fed = self.ffn(x).float()
        return _add_gated(hidden_states.float(), fed, ffn_gate, frame_ids).type_as(hidden_states)


TransformerBlockRegistry.register(
    VectorWanTransformerBlock,
    TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None),
)


class VectorWanTransformer3DModel(WanTransformer3DModel):
    """`WanTransformer3DModel` whose timestep may be (B, F): 1000 * sigma of every latent frame, in float32.

    Load it with `from_pretrained` from any stock folder, or turn a loaded stock model into one with `upgrade`.
    `save_pretrained` writes a stock folder.
    """

    _no_split_modules = ["VectorWanTransformerBlock"]
    _repeated_blocks = ["VectorWanTransformerBlock"]
    _cp_plan = {name: plan for name, plan in WanTransformer3DModel._cp_plan.items() if name != ""} | {
        "frame_index": {0: ContextParallelInput(split_dim=1, expected_dims=2, split_output=True)}
    }

    # diffusers reads the keys of the configuration off this signature.
    @functools.wraps(WanTransformer3DModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._adopt_blocks()

    def _adopt_blocks(self) -> None:
        self.frame_index = FrameIndex()
        self.rope.__class__ = FrameRotary
        for block in self.blocks:
            block.__class__ = VectorWanTransformerBlock

    @classmethod
    def upgrade(cls, model: WanTransformer3DModel) -> VectorWanTransformer3DModel:
        """Turn a stock model into this class in place and return it; an upgraded model is returned as it is.

        LoRA adapters, quantised layers and layerwise casting may already be there. Whatever replaced the forward of the
        model or of a block may not (offload and dispatch hooks, caches, parallelism, compilation, FSDP): InputError.
        """
        if isinstance(model, cls):
            return model
        if type(model) is not WanTransformer3DModel:
            raise InputError(
                f"Only a plain diffusers WanTransformer3DModel can be upgraded, not a {type(model).__name__}: "
                "pass the bare transformer, before anything wraps it."
            )
        for name, module in [("the model", model), *((f"block {i}", block) for i, block in enumerate(model.blocks))]:
            if module is not model and type(module) is not WanTransformerBlock:
                reason = f"is a {type(module).__name__} instead of a WanTransformerBlock"
            elif "forward" in vars(module):
                reason = "already carries hooks (offload, dispatch, cache or parallelism)"
            elif module._compiled_call_impl is not None:
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
        """The configuration as JSON, under the stock class name even when FSDP has renamed the class."""
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

        timestep is 1000 * sigma, 0 to 1000: (B, F), one per latent frame, float32 (float64 and integers are exact too),
        or what the stock model takes, with the stock result bit for bit: (B,), or per token (B, F * h * w). (B, F) with
        the same value in all frames is (B,), except inside torch.compile, which cannot look at values.
        encoder_hidden_states is the text [B, N, text_dim]. Any other shape, or a 2-D timestep in half precision
        (which makes 936 of 937), raises InputError.

        frame_positions, int64 [F]: the latent frames of the clip that hidden_states holds, so that attention sees their
        true distances. None and 0 ... F - 1 are the stock positions. Other positions take the path per frame, also for
        a timestep (B,), and cannot be combined with a timestep per token.
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
        """The timestep as (B, F), for frames at positions of their own."""
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
                f"Timesteps per frame or token came as {timestep.dtype}, which cannot hold them (bfloat16 makes 936 of "
                "937): pass 1000 * sigma in float32, and with FSDP mixed precision set cast_forward_inputs=False."
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
        """diffusers' own, which divides by the number of accelerators, also where there is none."""
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
    """Whether int64 [V] latent frames are 0 ... V - 1."""
    return bool((frames == torch.arange(len(frames), device=frames.device)).all())
