"""Animate a picture: frame 0 is given, and the model makes the other 16 frames.

The given frame has the noise multiplier 0, so its latent is bit-identical in the result.
"""

from PIL import Image, ImageDraw

import pusa

picture = Image.new("RGB", (64, 64), "black")
ImageDraw.Draw(picture).ellipse((36, 24, 52, 40), fill=(220, 40, 40))
picture.save("start.png")

pipe = pusa.load("tiny")  # the model in the package; give a folder or a hub id for another
clip = pipe.generate(
    "a red circle moves left on a black background",
    conditions=[pusa.Image("start.png")],  # frame 0; frame=-1 is the last frame
    steps=8,
    seed=7,
)
path = clip.save("circle.mp4")

print(clip.matrix)  # the column of the given frame is 0 at every step
print(f"{path}: {len(clip.frames)} frames. `pusa generate --from circle.json` makes it again.")
