"""What a pipeline knows of networks that come from another one."""

from __future__ import annotations

from diffusers import WanPipeline

from pusa.diffusers import PusaPipeline


def test_networks_alone_keep_the_default_settings_of_their_model() -> None:
    pipe = PusaPipeline.from_pretrained("tiny-base")
    stock = WanPipeline(**pipe.components, **pipe.parameters)

    again = PusaPipeline.from_pipe(stock)

    assert again.pusa.defaults == pipe.pusa.defaults
    assert again.pusa.defaults.size == (64, 64)
