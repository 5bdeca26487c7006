"""Follow the sampler with a callback: print its progress, save previews, and stop it early.

The callback receives a Step after every step. If it returns False, the sampler stops and raises pusa.Cancelled.
"""

from PIL import Image

import pusa
from pusa.core import Step

LAST = 6
pipe = pusa.load("tiny")


def watch(step: Step) -> bool:
    """Save the middle frame of the clip that the model predicts at this step."""
    preview = pipe.decode(step.denoised)  # uint8 [frames, height, width, 3]
    Image.fromarray(preview[len(preview) // 2]).save(f"preview_{step.index:02}.png")
    print(f"step {step.index + 1} of {step.steps}, highest noise level {step.sigma.max():.2f}")
    return step.index + 1 < LAST


try:
    pipe.generate("a blue triangle moves down on a black background", steps=12, callback=watch)
except pusa.Cancelled as stopped:
    print(f"{stopped}: the previews were enough")
