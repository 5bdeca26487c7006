"""Every LoRA dialect: is the weight that comes out the one that went into the file?

    python benchmarks/dialects.py

The same random changes are written as each program writes them (`tests/models/lora_files.py`), read back, and compared
with what they should do to the weights of a small random Wan: the largest error of (α/r) B A or of a whole difference,
relative to the largest change. Then the model with the LoRA at run time is compared with one whose weights have it
added, at strength 1.4. Prints a Markdown table.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from pusa.models import weight_files
from pusa.models.lora import dialects, header, runtime
from pusa.models.wan.transformer import VectorWanTransformer3DModel
from pusa.models.wan.weight_names import parameter_shapes
from tests.models.lora_files import DIALECTS, merged, truth, written
from tests.models.wan_small import build

STRENGTH = 1.4


def main() -> None:
    torch.set_num_threads(1)
    stock = build()
    shapes = parameter_shapes(stock)
    rng = torch.Generator().manual_seed(0)
    config = stock.config
    x = torch.randn(1, config.in_channels, 3, 4, 4, generator=rng)
    text = torch.randn(1, 5, config.text_dim, generator=rng)
    told = torch.tensor([[0.0, 400.0, 900.0]])
    print("| dialect | keys in the file | error of the weights | run time against merged |")
    print("| --- | ---: | ---: | ---: |")
    for dialect in DIALECTS:
        whole = dialect.startswith("lightx2v")
        factors, differences = truth(stock, outer=whole, whole=whole)
        with tempfile.TemporaryDirectory() as name:
            path = written(Path(name), dialect, factors, differences)
            keys = len(weight_files.listing(header.file_of(path)))
            read = dialects.read(path, shapes)
            wanted = {f"{module}.weight": b.double() @ a.double() for module, (a, b) in factors.items()}
            wanted |= {key: value.double() for key, value in differences.items()}
            found = {f"{module}.weight": b.double() @ a.double() for module, (a, b) in read.factors.items()}
            for key, value in read.differences.items():
                found[key] = found.get(key, 0) + value.double()
            assert found.keys() == wanted.keys(), dialect
            size = max(value.abs().max() for value in wanted.values())
            error = max((found[key] - wanted[key]).abs().max() for key in wanted) / size
            running = VectorWanTransformer3DModel.upgrade(copy.deepcopy(stock))
            runtime.load(running, path, STRENGTH, "style")
            added = merged(copy.deepcopy(stock), read.factors, read.differences, STRENGTH)
            added = VectorWanTransformer3DModel.upgrade(added)
            with torch.no_grad():
                one, other = (model(x, told, text, return_dict=False)[0] for model in (running, added))
            apart = (one - other).abs().max() / other.abs().max()
        print(f"| {dialect} | {keys} | {float(error):.1e} | {float(apart):.1e} |", flush=True)


if __name__ == "__main__":
    main()
