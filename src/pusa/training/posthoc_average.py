"""The LoRA of a run at an averaging length that is chosen afterwards, from the snapshots that the run kept."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from pusa import adapters
from pusa.errors import InputError
from pusa.training.config.tree import Config, read
from pusa.training.weight_averages import Reconstruction, reconstruct, snapshots_of


def write(run: Path, target: Path, sigma_rel: float, step: int | None = None) -> Reconstruction:
    """Write the average of relative length `sigma_rel` (EDM2's, 0 to 0.28) at `step` steps (default: all) as a LoRA.

    run: a folder of `pusa train` with train.ema post-hoc. The file is named as the run's own, and says the length as
    pusa.ema and the step as pusa.step. Raises InputError when the folder is no such run, or for what
    `averages.reconstruct` refuses.
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
        raise InputError(f"{run} is no run: an average of another length needs the folder that `pusa train` wrote.")
    config = read(run / "config.yaml", None, {})
    if config.train.ema != "post-hoc" or not snapshots_of(run):
        kept = "none" if config.train.ema is None else config.train.ema
        why = "it has no snapshots" if config.train.ema == "post-hoc" else f"its train.ema is {kept}"
        raise InputError(
            f"{run} kept no averages to choose from ({why}): train with --train.ema post-hoc, and leave its folder "
            "snapshots where it is."
        )
    return config


def _metadata(run: Path, output: str) -> dict[str, str]:
    """What the run's own LoRA says of itself, at its end or in a checkpoint."""
    written = [run / output, *sorted(run.glob(f"checkpoints/step_*/{output}"), reverse=True)]
    for path in written:
        if path.is_file():
            with safe_open(str(path), "pt") as file:
                return {key: value for key, value in (file.metadata() or {}).items() if key != "format"}
    return {}
