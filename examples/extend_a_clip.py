"""Continue a clip forwards, then make what came before it. The parts are joined as latents.

The given clip is not encoded a second time, so its colours do not drift at the joins.
"""

import pusa

prompt = "a green square moves right on a white background"
pipe = pusa.load("tiny")
clip = pipe.generate(prompt, steps=8, seed=1)

longer = pusa.extend(pipe, clip, prompt, frames=8, overlap=5, steps=8, seed=2)
whole = pusa.extend(pipe, longer, prompt, frames=8, overlap=5, direction="backward", steps=8, seed=3)

print(f"{len(clip.frames)} -> {len(longer.frames)} -> {len(whole.frames)} frames at {whole.fps:g} per second")
print(whole.save("longer.mp4"))
