"""Physics-IQ (Motamed et al., arXiv 2501.09038) and its Verified variant (arXiv 2606.18943): videos and scores.

Real experiments, filmed twice from three sides. A model is given the picture at the moment it begins, or three seconds
before it, and makes the next five. Nothing is learnt in the scores: where, when and how much something moves, against
how much the two real takes differ. `dataset.py` knows the official files, `making.py` makes videos, `measures.py` and
`scores.py` are the published definitions.
"""
