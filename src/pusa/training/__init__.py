"""Training: from a folder of clips to an adapter.

Read the modules in this order: data/dataset (find clips and captions), data/samples (cut them into samples), estimate
(memory and time of a run), data/cache (encode each sample once), config/ (settings), random_draws (the noise level of
each frame), data/batches, objectives/ (the losses), learner (one step), weight_averages, run_folder (checkpoints and
log), distributed (several processes), trainer (the loop), run (`pusa train`).
"""
