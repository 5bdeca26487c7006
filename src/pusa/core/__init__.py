"""The method. It needs torch only. Read it in this order: sigmas, timesteps, schedules, objectives, sampler.

matrix = schedules.conditioned(schedules.synchronous(sigmas.grid(10), frames=21), {0: 0.0})
clip = sample(velocity, latents, matrix, context)
"""

from __future__ import annotations

from pusa.core import objectives, schedules, sigmas
from pusa.core.objectives import flow_matching_loss, interpolate
from pusa.core.sampler import Call, Step, Velocity, add_noise, by_noise, guided, sample, walk
from pusa.core.timesteps import TimestepMatrix

__all__ = [
    "Call",
    "Step",
    "TimestepMatrix",
    "Velocity",
    "add_noise",
    "by_noise",
    "flow_matching_loss",
    "guided",
    "interpolate",
    "objectives",
    "sample",
    "schedules",
    "sigmas",
    "walk",
]
