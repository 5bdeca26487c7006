"""Changes of a weight that are no product of two factors: LoHa and LoKr, and Tucker forms of convolutions.

LoHa (arXiv 2108.06098) is (A1 B1) * (A2 B2), by elements. LoKr (arXiv 2212.10650) is W1 ⊗ W2, the Kronecker product,
where W1 or W2 may be a product of two factors. These are the conventions of LyCORIS. Large models have room for the
factors, but not for a difference of every weight. So the difference is computed when the layer runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

_ROWS = 1024
"""Rows of a change that are computed together."""


@dataclass(frozen=True)
class Product:
    """The change of a linear layer, [out, in]: the product of `left` and `right`, times `scale`.

    left, right: one matrix, or two factors of it. rows, columns: a factor for each output or input, as DoRA has.
    """

    kind: Literal["LoHa", "LoKr"]
    left: tuple[Tensor, ...]
    right: tuple[Tensor, ...]
    scale: float = 1.0
    rows: Tensor | None = None
    columns: Tensor | None = None

    def to(self, device: torch.device) -> Product:
        left, right = (tuple(value.to(device) for value in side) for side in (self.left, self.right))
        rows, columns = (None if value is None else value.to(device) for value in (self.rows, self.columns))
        return Product(self.kind, left, right, self.scale, rows, columns)

    def difference(self) -> Tensor:
        """Return the change as a matrix, float32 [out, in]."""
        return torch.cat(list(self.by_rows()))

    def by_rows(self) -> Iterator[Tensor]:
        """Yield the change some rows at a time, float32 [rows, in], so that no matrix of its whole size is needed."""
        start = 0
        for change in self._hadamard() if self.kind == "LoHa" else self._kronecker():
            change = change * self.scale
            if self.rows is not None:
                change = change * self.rows[start : start + len(change), None]
            yield change if self.columns is None else change * self.columns
            start += len(change)

    def _hadamard(self) -> Iterator[Tensor]:
        (a, b), (c, d) = (tuple(value.float() for value in side) for side in (self.left, self.right))
        for start in range(0, len(a), _ROWS):
            yield (a[start : start + _ROWS] @ b) * (c[start : start + _ROWS] @ d)

    def _kronecker(self) -> Iterator[Tensor]:
        left, right = _matrix(self.left), _matrix(self.right)
        count = max(1, _ROWS // len(right))
        for start in range(0, len(left), count):
            yield torch.kron(left[start : start + count], right)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the change, without computing it."""
        (a, b), (c, d) = ((side[0].shape[0], side[-1].shape[1]) for side in (self.left, self.right))
        return (a, b) if self.kind == "LoHa" else (a * c, b * d)


def of(parts: Mapping[str, Tensor], scale: float) -> Product:
    """Return the product of a linear layer. parts: the tensors of the file by the ends of their names.

    Raises KeyError if one is missing, and RuntimeError if they do not multiply.
    """
    if _is_loha(parts):
        kind: Literal["LoHa", "LoKr"] = "LoHa"
        left, right = (tuple(parts[f"hada_w{n}_{side}"] for side in "ab") for n in (1, 2))
    else:
        kind = "LoKr"
        left, right = (_lokr_side(parts, n) for n in (1, 2))
    product = Product(kind, left, right, scale)
    shapes = [(side[0].shape[0], side[-1].shape[1]) for side in (left, right) if all(x.ndim == 2 for x in side)]
    fit = all(len(side) == 1 or side[0].shape[1] == side[1].shape[0] for side in (left, right))
    if len(shapes) < 2 or not fit or (kind == "LoHa" and shapes[0] != shapes[1]) or len(parts) != len(left + right):
        raise RuntimeError("the factors do not multiply")
    return product


def kernel(parts: Mapping[str, Tensor]) -> Tensor:
    """Return the change of a convolution without its scale, float32, as a kernel or flattened to a matrix.

    parts, errors: as for `of`.
    """
    if _is_loha(parts):
        one, other = (_side(parts, f"hada_w{n}", f"hada_t{n}") for n in (1, 2))
        return one * other
    left, right = _matrix(_lokr_side(parts, 1)), _side(parts, "lokr_w2", "lokr_t2")
    return torch.kron(left.reshape(*left.shape, *[1] * (right.ndim - 2)), right.contiguous())


def rank(parts: Mapping[str, Tensor]) -> int | None:
    """Return the rank by which alpha is divided; None for a LoKr of two whole matrices."""
    names = ("hada_w1_b", "lokr_w2_b", "lokr_w1_b")
    return next((len(parts[name]) for name in names if name in parts), None)


def _is_loha(parts: Mapping[str, Tensor]) -> bool:
    return any(name.startswith("hada") for name in parts)


def _lokr_side(parts: Mapping[str, Tensor], number: int) -> tuple[Tensor, ...]:
    name = f"lokr_w{number}"
    return (parts[name],) if name in parts else (parts[f"{name}_a"], parts[f"{name}_b"])


def _side(parts: Mapping[str, Tensor], name: str, core: str) -> Tensor:
    if name in parts:
        return parts[name].float()
    a, b = parts[f"{name}_a"], parts[f"{name}_b"]
    return tucker(parts[core], a, b) if core in parts else a.float() @ b.float()


def tucker(core: Tensor, out: Tensor, into: Tensor) -> Tensor:
    """Return the kernel of a convolution, float32 [out, in, ...]. core: [r, r, ...]; out: [r, out]; into: [r, in]."""
    return torch.einsum("ij...,jn,im->mn...", core.float(), into.float(), out.float())


def _matrix(side: tuple[Tensor, ...]) -> Tensor:
    return side[0].float() if len(side) == 1 else side[0].float() @ side[1].float()
