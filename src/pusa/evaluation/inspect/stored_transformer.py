"""A transformer in files, of any layout and precision, read one tensor at a time.

A model that is only compared need not be able to run here. The paper compares with Wan-I2V, so models of every task are
accepted. Two models of 28 GB each need only the memory of their largest tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pusa.errors import InputError
from pusa.models import hub, weight_files
from pusa.models.loading import sources
from pusa.models.wan import original_layout, recognise
from pusa.models.wan.recognise import TRANSFORMER
from pusa.models.weight_files import Stored


@dataclass(frozen=True)
class StoredTransformer:
    """The files of a transformer's tensors.

    source: the name or path that was given. tensors: by diffusers' names. scales: the factors of fp8 weights, by the
    names of the weights. experts: the number of transformers of the model; this one is the first, for high noise.
    """

    source: str
    tensors: Mapping[str, Stored]
    scales: Mapping[str, Stored]
    experts: int = 1

    @classmethod
    def find(cls, source: str | Path) -> StoredTransformer:
        """Find the transformer of a model's folder (diffusers' or Wan's layout), its own folder, a file, or a hub id.

        Only headers are read. Raises InputError if there is no transformer, or if files are missing or damaged.
        """
        home = _home(str(source))
        files = [home] if home.is_file() else _files(home)
        stored = {name: one for file in files for name, one in weight_files.listing(file).items()}
        start = recognise.prefixes(stored).get(TRANSFORMER)
        if start is None:
            if any(".lora_" in name or name.startswith("lora_") for name in stored):
                raise InputError(f"{source} is a LoRA; give it with --lora.")
            raise InputError(
                f"{source} has no Wan transformer; give the folder of a model or of a transformer, or a file."
            )
        mine = {name.removeprefix(start): one for name, one in stored.items() if name.startswith(start)}
        tensors, scales = {}, {}
        for name, one in recognise.canonical(TRANSFORMER, mine).items():
            if suffix := next((s for s in recognise.SCALES if name.endswith(s)), None):
                scales[name.removesuffix(suffix) + ".weight"] = one
            elif not name.endswith(recognise.MARKS):
                tensors[name] = one
        return cls(str(source), tensors, scales, max(1, len(sources.experts_of(home))))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor, by name."""
        return {name: one.shape for name, one in self.tensors.items()}

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """These tensors in float32 on the CPU, file by file; within a file, in the given order."""
        wanted = {self.tensors[name]: name for name in names}
        scales = {name: self.scales[name] for name in wanted.values() if name in self.scales}
        read = {one: tensor.float().flatten() for one, tensor in weight_files.read(scales.values())}
        for one, tensor in weight_files.read(wanted):
            name = wanted[one]
            yield name, _plain(one, tensor, read[scales[name]] if name in scales else None)


def side_by_side(
    first: StoredTransformer, second: StoredTransformer, names: Iterable[str]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The tensors of these names in both transformers, one pair at a time; each pair of files is opened once."""
    groups: dict[tuple[Path, Path], list[str]] = {}
    for name in names:
        groups.setdefault((first.tensors[name].file, second.tensors[name].file), []).append(name)
    for together in groups.values():
        for (name, one), (_, other) in zip(first.read(together), second.read(together), strict=True):
            yield name, one, other


def _home(source: str) -> Path:
    """The file or folder of a source; the transformer of a hub id is downloaded."""
    name, home = sources.find(source, ())
    if source in (sources.TINY, sources.TINY_BASE) or Path(source).expanduser().exists():
        return home
    wanted = original_layout.DOWNLOADS[TRANSFORMER] if original_layout.is_original(home) else [f"{TRANSFORMER}/*"]
    return hub.snapshot(name, wanted)


def _files(folder: Path) -> list[Path]:
    if (folder / "model_index.json").is_file():
        return original_layout.shards(folder / TRANSFORMER, "")
    return original_layout.files_of(TRANSFORMER, folder)


def _plain(one: Stored, tensor: Tensor, scale: Tensor | None) -> Tensor:
    """A stored tensor as float32 in its own shape."""
    if hasattr(tensor, "quant_type"):
        from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

        tensor = dequantize_gguf_tensor(tensor).reshape(one.shape)
    if not tensor.is_floating_point():
        raise InputError(
            f"{one.file} stores {one.name} as {one.dtype}, which cannot be read; give the model in another precision."
        )
    wide = tensor.float()
    if scale is not None:
        return wide * (scale[:, None] if len(scale) > 1 else scale)
    if tensor.element_size() == 1 and wide.abs().max() == torch.finfo(tensor.dtype).max:
        raise InputError(
            f"{one.file} is scaled fp8 without its scales ({one.name} uses the whole range of fp8): give the file that "
            "contains them."
        )
    return wide
