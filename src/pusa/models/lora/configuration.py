"""What PEFT's configuration says about the factors of a LoRA: their scaling, by layer.

PEFT writes `adapter_config.json` next to its file. diffusers and finetrainers put the same values into the header. A
key of `alpha_pattern` or `rank_pattern` is a regular expression for the end of a layer's name, as in
`(.*\\.)?KEY$`, and the first key that matches counts. The layer's name is the one in the model that was trained, which
is usually Wan's own or that of diffusers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pusa.errors import InputError
from pusa.models.backbone import Expert

_PARTS: Mapping[Expert | None, tuple[str, ...]] = {
    None: ("transformer.", "transformer_2."),
    "high": ("transformer.", "transformer_1."),
    "low": ("transformer_2.",),
}
"""What diffusers puts before the values for one transformer of a pipeline."""
_ALPHAS = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha"}
"""The kinds of adapter that can be loaded, and the name of their alpha."""
_DEFAULT = 8
"""The alpha and the rank of PEFT, if the configuration does not give them."""
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_OTHER_FORMS = ("use_qalora", "use_bdlora", "alora_invocation_tokens", "layer_replication", "arrow_config",
                "kasa_config", "monteclora_config", "target_parameters")  # fmt: skip


@dataclass(frozen=True)
class Configuration:
    """A configuration of PEFT. values: by name; empty if the file has none."""

    path: Path
    values: Mapping[str, Any]

    @classmethod
    def of(cls, path: Path, metadata: Mapping[str, str], expert: Expert | None = None) -> Configuration:
        """Return the configuration in the metadata of a file.

        expert: of the transformer, if the file is for two. Raises InputError if it is damaged or not that of a LoRA,
        LoHa or LoKr.
        """
        found = (metadata.get(name) for name in ("adapter_config", "lora_adapter_metadata", "lora_config"))
        text = next((text for text in found if text), None)
        if text is None:
            return cls(path, {})
        try:
            loaded = json.loads(text)
            if not isinstance(loaded, dict):
                raise ValueError("not a dictionary")
        except ValueError as error:
            raise cls(path, {})._damaged(error) from error
        if text == metadata.get("lora_config") and "lora_alpha" not in loaded:  # of another program than finetrainers
            return cls(path, {})
        values: dict[str, Any] = {}
        for key, value in loaded.items():
            part = next((part for part in _PARTS[expert] if key.startswith(part)), "")
            if "." not in (name := key.removeprefix(part)):
                values[name] = value
        config = cls(path, values)
        config._check_kind()
        return config

    def scaling(self, names: Sequence[Sequence[str]], rank: int | None, alpha: float | None) -> float:
        """Return the factor of a layer's product: alpha / r, or alpha / sqrt(r) if the LoRA is rank-stabilised.

        names: the names of the layer in groups; a later group counts if no key matches a name of an earlier one. rank:
        that of its tensors, or None if they have none, as a whole LoKr. alpha: that of the file, which comes first.
        Without alpha and configuration, the file means the product itself.
        """
        try:
            if alpha is None:
                if not self.values:
                    return 1.0
                common = self.values.get(_ALPHAS[self._kind])
                alpha = float(self._by_pattern("alpha_pattern", names, _DEFAULT if common is None else common))
                if rank is None:
                    rank = int(self._by_pattern("rank_pattern", names, self.values.get("r") or _DEFAULT))
            if rank is None:
                return 1.0
            if not math.isfinite(alpha):
                raise ValueError(f"its alpha is {alpha}")
        except (ValueError, TypeError, AttributeError, re.error) as error:
            raise self._damaged(error) from error
        return scaling(alpha, rank, bool(self.values.get("use_rslora")))

    def unmatched(self, names: Iterable[Sequence[Sequence[str]]]) -> list[str]:
        """Return the keys of `alpha_pattern` that match no layer. names: of every layer, as for `scaling`."""
        keys = list(self.values.get("alpha_pattern") or {})
        every = [name for groups in names for group in groups for name in group]
        return [key for key in keys if not any(_matches(key, name) for name in every)]

    @property
    def _kind(self) -> str:
        return str(self.values.get("peft_type") or "LORA").removeprefix("PeftType.").upper()

    def _by_pattern(self, pattern: str, names: Sequence[Sequence[str]], default: Any) -> Any:
        patterns = self.values.get(pattern) or {}
        for group in names:
            for key, value in patterns.items():
                if any(_matches(key, name) for name in group):
                    return value
        return default

    def _check_kind(self) -> None:
        if self._kind not in _ALPHAS:
            raise InputError(
                f"The LoRA {self.path} is a {self._kind}, which is not supported: merge it into its model with the "
                "program that made it."
            )
        if form := next((name for name in _OTHER_FORMS if self.values.get(name)), None):
            raise InputError(
                f"The LoRA {self.path} has {form} in its configuration, which is not supported: merge it into its "
                "model with PEFT."
            )
        if self.values.get("modules_to_save") or self.values.get("bias") not in (None, "none"):
            what = "whole layers (modules_to_save)" if self.values.get("modules_to_save") else "biases (bias)"
            raise InputError(
                f"The LoRA {self.path} also contains trained {what}, which replace those of the model: merge it into "
                "its model with PEFT."
            )
        start = self.values.get("init_lora_weights")
        if isinstance(start, str) and start.startswith(_CHANGED_BASE):
            raise InputError(
                f"The LoRA {self.path} was initialised with {start}, which also changes the base model: convert it to "
                "an ordinary LoRA with PEFT."
            )

    def _damaged(self, error: Exception) -> InputError:
        return InputError(f"The LoRA {self.path} has a damaged configuration ({error}); copy it again.")


def scaling(alpha: float, rank: int, stabilised: bool) -> float:
    """Return the factor of B A: alpha / r, or alpha / sqrt(r) for a rank-stabilised LoRA (arXiv 2312.03732)."""
    return alpha / (math.sqrt(rank) if stabilised else rank)


def _matches(key: str, name: str) -> bool:
    return re.match(rf"(.*\.)?({key})$", name) is not None
