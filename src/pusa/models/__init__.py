"""The networks, on diffusers, transformers and peft: the Wan transformer, its checkpoints, adapters and latents."""

from pusa.models import diffusers_packages

diffusers_packages.install()
