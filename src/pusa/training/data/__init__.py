"""From files to training batches: clips and captions, samples, the cache of latents, and the order of batches."""
