"""From the name of an acceleration to a context in which a backbone's networks run with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from pusa.acceleration.accounting import Accelerated
from pusa.acceleration.executor import Executor
from pusa.acceleration.held import Held
from pusa.acceleration.libraries import LibraryCache
from pusa.acceleration.names import Acceleration, Value
from pusa.acceleration.policy import Keeps, Policy, Together
from pusa.acceleration.reuse import Reuse, Uniform
from pusa.acceleration.tokens import TokenReuse
from pusa.core.timesteps import TimestepMatrix
from pusa.errors import InputError
from pusa.models.backbone import Backbone
from pusa.processes import ProcessGroup


def policy_of(acceleration: Acceleration, matrix: TimestepMatrix) -> Policy:
    """Return the policy of one clip."""
    policies = [_policy(name, values, matrix) for name, values in acceleration.parts]
    return policies[0] if len(policies) == 1 else Together(policies)


def _policy(name: str, values: Mapping[str, Value], matrix: TimestepMatrix) -> Policy:
    chosen: dict[str, Any] = dict(values)
    if name == "held":
        return Held(chosen["every"])
    if name == "uniform":
        return Uniform(chosen["every"], matrix.moves, chosen["first"])
    if name == "tokens":
        return TokenReuse(chosen["share"])
    return Reuse(chosen["threshold"], matrix.moves, chosen["first"], "clip" if name == "steps" else "frames")


def running(
    acceleration: Acceleration,
    matrix: TimestepMatrix,
    backbone: Backbone,
    networks: Sequence[Any],
    group: ProcessGroup,
) -> AbstractContextManager[Accelerated]:
    """Return a context in which the networks of a backbone run with an acceleration, for one clip.

    The `call` of its value has to surround each call of a network.

    Raises InputError if the acceleration does not fit the matrix, or the processes that share the clip.
    """
    acceleration.check(matrix.steps, matrix.frames, matrix)
    if acceleration.library:
        return LibraryCache(acceleration, backbone, networks)
    policy = policy_of(acceleration, matrix)
    if group.size > 1 and policy.keeps is Keeps.BLOCKS:
        raise InputError(
            f"The acceleration {acceleration} computes parts of a step, and {group.size} processes share the clip: use "
            "steps or uniform, or one process."
        )
    return Executor(policy, backbone, networks, group)
