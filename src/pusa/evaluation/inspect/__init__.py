"""Inspect a model: attention between latent frames, and how far training moved the weights."""
