"""What happens inside a model: attention between frames, and how far weights moved in training."""
