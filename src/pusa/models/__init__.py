"""The networks, on diffusers, transformers and peft: the Wan transformer, its checkpoints, adapters and latents."""
