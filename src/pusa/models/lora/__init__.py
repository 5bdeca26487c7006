"""LoRA files: reading every dialect, running them on a model at a strength, and writing them for other programs."""
