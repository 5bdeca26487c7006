"""Write the LoRA of a run with an average whose length is chosen after the training, from the run's snapshots."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from pusa import adapters
from pusa.errors import InputError
from pusa.training.config.tree import Config, read
from pusa.training.weight_averages import Reconstruction, reconstruct, snapshots_of


def write(run: Path, target: Path, sigma_rel: float, step: int | None = None) -> Reconstruction:
    """Write the average of relative length `sigma_rel` (σ_rel of EDM2, 0 to 0.28) after `step` steps (default: all).

    run: a folder of `pusa train` with train.ema = post-hoc. target: the LoRA file. Its tensors have the names of the
    run's own LoRA, and its metadata has the length as pusa.ema and the step as pusa.step. Raises InputError if the
    folder is not such a run, and where `weight_averages.reconstruct` raises it.
    """
    adapter = adapters.from_settings(_settings(run).lora)
    if not adapter.standalone:
        raise InputError(f"{run} trained all weights of the model: an average of another length needs a LoRA.")
    average = reconstruct([*snapshots_of(run).values()], sigma_rel, step)
    about = {**_metadata(run, adapter.output), "pusa.ema": f"{sigma_rel:g}", "pusa.step": str(average.step)}
    adapter.write(target, average.weights, about)
    return average


def _settings(run: Path) -> Config:
    if not run.is_dir() or not (run / "config.yaml").is_file():
        raise InputError(f"{run} is not the folder of a run: another average needs a folder that `pusa train` wrote.")
    config = read(run / "config.yaml", None, {})
    if config.train.ema != "post-hoc" or not snapshots_of(run):
        kept = "none" if config.train.ema is None else config.train.ema
        why = "it has no snapshots" if config.train.ema == "post-hoc" else f"its train.ema is {kept}"
        raise InputError(
            f"{run} has no averages to choose from ({why}): train with --train.ema post-hoc, and keep the folder "
            "snapshots."
        )
    return config


def _metadata(run: Path, output: str) -> dict[str, str]:
    """Return the metadata of the run's own LoRA, from its end or from its newest checkpoint."""
    written = [run / output, *sorted(run.glob(f"checkpoints/step_*/{output}"), reverse=True)]
    for path in written:
        if path.is_file():
            with safe_open(str(path), "pt") as file:
                return {key: value for key, value in (file.metadata() or {}).items() if key != "format"}
    return {}
