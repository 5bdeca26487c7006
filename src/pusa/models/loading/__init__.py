"""From a name to a loaded model: finding it, downloading it, reading its files, and the presets."""
