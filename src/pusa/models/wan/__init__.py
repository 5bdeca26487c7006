"""The Wan video model on diffusers: transformer, autoencoder and text encoder, its checkpoint layouts and defaults."""
