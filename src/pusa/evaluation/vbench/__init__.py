"""VBench-I2V (Huang et al., arXiv 2411.13503): its videos, its official scorer in its own environment, and its total.

`protocol.py` is the published arithmetic. `manifest.py` lists the videos, `maker.py` makes them, `verification.py`
finds missing and wrong videos, `scoring.py` runs the official code on them, and `totals.py` reads its results.
"""
