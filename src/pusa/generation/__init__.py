"""Making clips: conditions become known latents, a timestep matrix says what happens to them, the sampler walks it."""
