"""From a folder of clips to an adapter: what is there, latents in a cache, the training loop, what comes out of it.

Reading order: dataset (which clips and captions are there), clips (what each holds and which samples become of it),
estimate (what a run will take), cache (encoded once), config, draws (σ per frame), batches,
adaptation (what is trained), learner (one step), averages, state (the run's folder), parallel, trainer.
"""
