"""Compare seeds and LoRA strengths on one sheet. Strengths change at run time: nothing is loaded again.

Rows are strengths of the adapter, columns are seeds. The same seed starts from the same noise in every row.
"""

from PIL import Image

import pusa

SEEDS, STRENGTHS, SIDE = (0, 1), (0.0, 1.2), 64
prompt = "a yellow square spins on a black background"

pipe = pusa.load("tiny")
adapter = pipe.loras[0].name
sheet = Image.new("RGB", (SIDE * len(SEEDS), SIDE * len(STRENGTHS)))
for row, strength in enumerate(STRENGTHS):
    pipe.set_lora(adapter, strength)  # 0 is the base model, bit for bit
    for column, seed in enumerate(SEEDS):
        clip = pipe.generate(prompt, steps=4, seed=seed)
        sheet.paste(Image.fromarray(clip.frames[8]), (SIDE * column, SIDE * row))
        print(f"strength {strength:g}, seed {seed}: {[(lora['name'], lora['scale']) for lora in clip.recipe['loras']]}")
sheet.save("seeds.png")
