"""Physics-IQ (Motamed et al., arXiv 2501.09038) and Physics-IQ Verified (arXiv 2606.18943): make videos and score them.

The benchmark has real experiments, filmed twice from three sides. A model gets the picture at the moment when the
experiment begins, or the three seconds before it, and generates the next five seconds. The scores use no network: they
compare where, when and how much something moves, relative to the difference between the two real takes. `dataset.py`
finds the official files, `maker.py` makes videos, `measures.py` and `scores.py` are the published definitions, and
`comparison.py` applies them to a folder of videos.
"""
