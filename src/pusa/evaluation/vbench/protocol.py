"""The arithmetic of VBench-I2V since August 2024: how nine dimensions are normalised, weighted and combined.

    n = (x − least) / (most − least)
    I2V = (n of I2V subject + n of I2V background + 0.1 · n of camera motion) / 2.1
    quality = (n of five dimensions + 0.5 · n of dynamic degree) / 5.5          total = (I2V + quality) / 2

The official code also measures temporal flickering, which is in no score. Earlier totals were without camera motion and
with flickering; they cannot be compared with these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Dimension:
    """One dimension. group: the score that it is part of. least, most: the range of the normalisation.

    weight: within its group. videos: the number of the 5,590 videos that it is measured on.
    """

    title: str
    group: Literal["i2v", "quality"]
    least: float
    most: float
    weight: float
    videos: int

    def normalised(self, value: float) -> float:
        """The normalised value; value: in [0, 1], as the official code reports it."""
        return (value - self.least) / (self.most - self.least)


DIMENSIONS: dict[str, Dimension] = {
    "i2v_subject": Dimension("I2V subject", "i2v", 0.1462, 1.0, 1.0, 1230),
    "i2v_background": Dimension("I2V background", "i2v", 0.2615, 1.0, 1.0, 545),
    "camera_motion": Dimension("camera motion", "i2v", 0.0, 1.0, 0.1, 3815),
    "subject_consistency": Dimension("subject consistency", "quality", 0.1462, 1.0, 1.0, 1230),
    "background_consistency": Dimension("background consistency", "quality", 0.2615, 1.0, 1.0, 545),
    "motion_smoothness": Dimension("motion smoothness", "quality", 0.7060, 0.9975, 1.0, 1230),
    "dynamic_degree": Dimension("dynamic degree", "quality", 0.0, 1.0, 0.5, 1230),
    "aesthetic_quality": Dimension("aesthetic quality", "quality", 0.0, 1.0, 1.0, 1775),
    "imaging_quality": Dimension("imaging quality", "quality", 0.0, 1.0, 1.0, 1775),
}
UNWEIGHED = "temporal_flickering"
"""measured by the official code, in no score"""


@dataclass(frozen=True)
class Total:
    """Scores in [0, 1]."""

    i2v: float
    quality: float

    @property
    def total(self) -> float:
        """The mean of both scores."""
        return (self.i2v + self.quality) / 2


def total(values: Mapping[str, float], *, camera: bool = True) -> Total:
    """The scores of a complete set of values in [0, 1]; with camera=False, without camera motion.

    Raises KeyError for a missing dimension: no dimension counts as 0.
    """
    return Total(_group(values, "i2v", camera), _group(values, "quality", camera))


def _group(values: Mapping[str, float], group: str, camera: bool) -> float:
    parts = [
        (dimension.weight, dimension.normalised(values[name]))
        for name, dimension in DIMENSIONS.items()
        if dimension.group == group and (camera or name != "camera_motion")
    ]
    return sum(weight * value for weight, value in parts) / sum(weight for weight, _ in parts)


def share_of_total(name: str) -> float:
    """The change of the total if a dimension changes by 1: d total / d x."""
    dimension = DIMENSIONS[name]
    weights = sum(other.weight for other in DIMENSIONS.values() if other.group == dimension.group)
    return dimension.weight / weights / (dimension.most - dimension.least) / 2
