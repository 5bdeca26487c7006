"""Random weights where the official code looks for trained ones; run by the Python of its environment, from a checkout.

The networks are the official ones (RAFT, AMT-S, MUSIQ), so that loading, measuring and writing are the official code
from end to end. DINO is a repository of the hub, which can only be fetched: a small network stands in for it.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, ".")
import torch
from easydict import EasyDict
from omegaconf import OmegaConf
from pyiqa.archs.musiq_arch import MUSIQ
from vbench.third_party.amt.utils.build_utils import build_from_cfg
from vbench.third_party.RAFT.core.raft import RAFT

DINO = """
dependencies = ["torch"]

def dino_vitb16(pretrained=True, **kwargs):
    import torch
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 96, 16, 16), torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten())
"""


def main() -> None:
    torch.manual_seed(0)
    cache, hub = Path(os.environ["VBENCH_CACHE_DIR"]), Path(os.environ["TORCH_HOME"]) / "hub"
    raft = RAFT(EasyDict(small=False, mixed_precision=False, alternate_corr=False))
    amt = build_from_cfg(OmegaConf.load("vbench/third_party/amt/cfgs/AMT-S.yaml").network)
    weights = {
        "raft_model/models/raft-things.pth": {f"module.{name}": value for name, value in raft.state_dict().items()},
        "amt_model/amt-s.pth": {"state_dict": amt.state_dict()},
        "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth": MUSIQ(pretrained=False).state_dict(),
    }
    for name, state in weights.items():
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, cache / name)
    repository = hub / "facebookresearch_dino_main"
    repository.mkdir(parents=True)
    (repository / "hubconf.py").write_text(DINO, encoding="utf-8")
    (hub / "checkpoints").mkdir()
    (hub / "checkpoints" / "dino_vitbase16_pretrain.pth").touch()


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
