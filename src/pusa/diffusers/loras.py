"""The methods of a pipeline of diffusers for LoRAs. The loader of this project reads the files, in any dialect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pusa.errors import InputError
from pusa.models.backbone import Expert

if TYPE_CHECKING:
    from pusa.generation.pipeline import Pipeline

_COMPONENT = {None: "transformer", "high": "transformer", "low": "transformer_2"}


class LoraMethods:
    """For `PusaPipeline`. An adapter is a LoRA of the model, and its weight is the strength."""

    _disabled: list[tuple[str, Expert | None, float]] = []  # never changed in place

    if TYPE_CHECKING:

        @property
        def pusa(self) -> Pipeline: ...

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path,
        adapter_name: str | None = None,
        *,
        weight_name: str | None = None,
        subfolder: str | None = None,
        load_into_transformer_2: bool = False,
    ) -> None:
        """Load a LoRA at strength 1: a file of any dialect, a folder that PEFT or diffusers wrote, or one on the hub.

        Args:
            pretrained_model_name_or_path_or_dict: the file, the folder, or the hub id of a repository.
            adapter_name: its name for `set_adapters`. The default is the name of the file.
            weight_name, subfolder: the file in the folder or in the repository.
            load_into_transformer_2: whether the low-noise expert of two gets it, and not the high-noise expert.

        Raises InputError, and changes nothing, for a LoRA that does not exist or does not fit.
        """
        given = pretrained_model_name_or_path_or_dict
        if not isinstance(given, (str, Path)):
            raise InputError(
                f"The LoRA is of type {type(given).__name__}, and a sidecar names a file: save it, and give its path."
            )
        path = "/".join(str(part) for part in (given, subfolder, weight_name) if part is not None)
        two = self.pusa.transformer_2 is not None
        if load_into_transformer_2 and not two:
            raise InputError(f"{self.pusa.backbone.source} has no transformer_2: leave load_into_transformer_2 out.")
        expert: Expert | None = ("low" if load_into_transformer_2 else "high") if two else None
        self.pusa.load_lora(path, name=adapter_name, expert=expert)

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float | None] | None = None
    ) -> None:
        """Use these LoRAs at these strengths (default 1), and no other. The LoRA of `tiny` is also one of them."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        weights = (
            list(adapter_weights) if isinstance(adapter_weights, (list, tuple)) else [adapter_weights] * len(names)
        )
        if len(weights) != len(names):
            raise InputError(f"There are {len(weights)} weights for {len(names)} adapters: give one for all, or each.")
        strengths = {name: 1.0 if weight is None else weight for name, weight in zip(names, weights, strict=True)}
        there = dict.fromkeys(lora.name for lora in self.pusa.loras)
        if unknown := [name for name in names if name not in there]:
            raise InputError(f"There is no LoRA {unknown[0]!r}: there is {', '.join(there) or 'none'}.")
        for name in there:
            self.pusa.set_lora(name, strengths.get(name, 0.0))  # type: ignore[arg-type]

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Remove LoRAs, and free their memory."""
        for name in [adapter_names] if isinstance(adapter_names, str) else list(adapter_names):
            self.pusa.remove_lora(name)

    def unload_lora_weights(self) -> None:
        """Remove all LoRAs, also the one that `tiny` brings. The base stays bit-identical."""
        self.delete_adapters(list(dict.fromkeys(lora.name for lora in self.pusa.loras)))

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Return the names of the LoRAs of each transformer that has one."""
        found: dict[str, list[str]] = {}
        for lora in self.pusa.loras:
            found.setdefault(_COMPONENT[lora.expert], []).append(lora.name)
        return found

    def get_active_adapters(self) -> list[str]:
        """Return the names of the LoRAs whose strength is not 0."""
        return list(dict.fromkeys(lora.name for lora in self.pusa.loras if lora.scale))

    def disable_lora(self) -> None:
        """Set the strength of every LoRA to 0, until `enable_lora`."""
        kept = [(lora.name, lora.expert, lora.scale) for lora in self.pusa.loras if lora.scale]
        self.set_adapters([])
        self._disabled = kept or self._disabled

    def enable_lora(self) -> None:
        """Set the LoRAs to the strengths that they had before `disable_lora`."""
        for name, expert, scale in self._disabled:
            self.pusa.set_lora(name, scale, expert)
        self._disabled = []

    def fuse_lora(self, *_: Any, **__: Any) -> NoReturn:
        """Raise InputError: `save_pretrained` puts the LoRAs into the weights that it writes."""
        raise InputError(
            "The weights of a PusaPipeline do not change, so its LoRAs cannot be fused: save_pretrained writes weights "
            "that contain them."
        )
