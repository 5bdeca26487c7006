"""Clips in less time: reuse what hardly changes from one denoising step to the next.

A *policy* decides in each step which latent frames, or which tokens, a network computes. The others keep what the
blocks added to them when they were last computed. In an ordinary sampler, a step has one noise level, and a policy can
only skip whole steps. With a timestep per frame, frames change at different speeds: a given frame does not change at
all, and the frames of a staircase are at different levels. So a policy decides for each frame.

    names       policies by name: `steps,threshold=0.1` (imports no torch)
    policy      what a policy sees, and what it answers
    reuse       steps or frames whose first block says that little has changed
    held        given frames, which need not be computed in every step
    tokens      the tokens that attention looks at and that change
    search      how many tokens each step should compute
    executor    carries the decisions out on the blocks of a network, and counts what was computed
    libraries   the caches of diffusers, which decide for a clip as a whole
    reduction   convolutions of a video encoder that compute fewer frames and channels where a clip allows it
"""
