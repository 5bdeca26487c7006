"""`PusaPipeline`: the tasks of this project behind the interface of a pipeline of diffusers.

    pipe = PusaPipeline.from_pretrained("tiny")
    frames = pipe(prompt="a red circle moves right", image="start.png").frames[0]

It is a front end like the command line. `generation/` makes the clips, so they are those of `pusa.load`, bit for bit.
"""

from pusa.diffusers.outputs import PusaPipelineOutput
from pusa.diffusers.pipeline import PusaPipeline

__all__ = ["PusaPipeline", "PusaPipelineOutput"]
