"""The settings of a training run: their tree, presets, and file formats."""
