"""Compose a timestep matrix: later frames are denoised later, like a staircase, and both ends of the clip are given.

With a matrix of your own, the matrix decides the number of steps and the noise of every condition.
"""

from PIL import Image, ImageDraw

import pusa
from pusa.core import schedules, sigmas


def circle(x: int) -> Image.Image:
    """A red circle around column x."""
    picture = Image.new("RGB", (64, 64), "black")
    ImageDraw.Draw(picture).ellipse((x - 8, 24, x + 8, 40), fill=(220, 40, 40))
    return picture


pipe = pusa.load("tiny")
descent = sigmas.grid(8, shift=3.0)  # noise levels from 1 to 0 in 8 steps
matrix = schedules.staircase(descent, frames=5, block=2, delay=2)  # 5 latent frames are 17 pixel frames
matrix = schedules.conditioned(matrix, {0: 0.0, 4: 0.2})  # the first is exact, the last may change a little
print(matrix)

clip = pipe.generate(
    "a red circle moves left on a black background",
    conditions=[pusa.Image(circle(48)), pusa.Image(circle(16), frame=-1)],
    matrix=matrix,
)
print(clip.save("staircase.mp4"))
