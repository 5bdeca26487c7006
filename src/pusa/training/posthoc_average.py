"""The LoRA of a run at an averaging length that is chosen afterwards, from the snapshots that the run kept."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from pusa.errors import InputError
from pusa.models.lora import dialects, runtime
from pusa.training.adaptation import ADAPTER, LORA_FILE
from pusa.training.config.tree import Config, read
from pusa.training.weight_averages import Reconstruction, reconstruct, snapshots_of


def write(run: Path, target: Path, sigma_rel: float, step: int | None = None) -> Reconstruction:
    """Write the average of relative length `sigma_rel` (EDM2's, 0 to 0.28) at `step` steps (default: all) as a LoRA.

    run: a folder of `pusa train` with train.ema post-hoc. The file is named as the run's own, and says the length as
    pusa.ema and the step as pusa.step. Raises InputError when the folder is no such run, or for what
    `averages.reconstruct` refuses.
    """
    config = _settings(run)
    average = reconstruct([*snapshots_of(run).values()], sigma_rel, step)
    assert config.lora
    rank, alpha = config.lora.rank, config.lora.rank if config.lora.alpha is None else config.lora.alpha
    strength = dialects.scaling(alpha, rank, config.lora.rslora)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for name, down in average.weights.items():
        module, found, _ = name.partition(f".lora_A.{ADAPTER}.weight")
        if found:
            up = average.weights[f"{module}.lora_B.{ADAPTER}.weight"]
            factors[module] = down, up if strength == 1 else up * strength
    about = {**_metadata(run), "pusa.ema": f"{sigma_rel:g}", "pusa.step": str(average.step)}
    runtime.write(target, factors, about)
    return average


def _settings(run: Path) -> Config:
    if not run.is_dir() or not (run / "config.yaml").is_file():
        raise InputError(f"{run} is no run: an average of another length needs the folder that `pusa train` wrote.")
    config = read(run / "config.yaml", None, {})
    if config.train.ema != "post-hoc" or not snapshots_of(run):
        kept = "none" if config.train.ema is None else config.train.ema
        why = "it has no snapshots" if config.train.ema == "post-hoc" else f"its train.ema is {kept}"
        raise InputError(
            f"{run} kept no averages to choose from ({why}): train with --train.ema post-hoc, and leave its folder "
            "snapshots where it is."
        )
    if config.lora is None:
        raise InputError(f"{run} trained the whole model, and an average of another length can only be had of a LoRA.")
    return config


def _metadata(run: Path) -> dict[str, str]:
    """What the run's own LoRA says of itself, at its end or in a checkpoint."""
    written = [run / LORA_FILE, *sorted(run.glob(f"checkpoints/step_*/{LORA_FILE}"), reverse=True)]
    for path in written:
        if path.is_file():
            with safe_open(str(path), "pt") as file:
                return {key: value for key, value in (file.metadata() or {}).items() if key != "format"}
    return {}
