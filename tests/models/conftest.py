"""A small random Wan: the stock model, its saved folder, and a fresh copy of either kind for each test."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel

from pusa.models.wan.transformer import VectorWanTransformer3DModel
from tests.models.wan_small import build


@pytest.fixture(scope="session")
def pristine() -> WanTransformer3DModel:
    return build()


@pytest.fixture(scope="session")
def wan_folder(pristine: WanTransformer3DModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wan")
    pristine.save_pretrained(path)
    return path


@pytest.fixture
def stock(pristine: WanTransformer3DModel) -> WanTransformer3DModel:
    return copy.deepcopy(pristine)


@pytest.fixture
def vector(pristine: WanTransformer3DModel) -> VectorWanTransformer3DModel:
    return VectorWanTransformer3DModel.upgrade(copy.deepcopy(pristine))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small only lose time to threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
