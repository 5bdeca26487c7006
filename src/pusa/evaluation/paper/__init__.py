"""The paper in miniature (arXiv 2507.16116, sections 3.2 to 3.4): its comparisons on the embedded base and world.

`methods.py` says what is compared, `training.py` trains it, `networks.py` is what is trained, `scoring.py` makes and
scores clips, `experiments.py` lists what each table needs, `tables.py` writes them beside the paper's own.
"""
