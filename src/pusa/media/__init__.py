"""Pictures and clips as arrays of pixels, from files of every kind and back.

The doors are `images`, `videos`, `animations` and `video_probe`; the other modules are what these need. The rest of the
project uses no codec.
"""
