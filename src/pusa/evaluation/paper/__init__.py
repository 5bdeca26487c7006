"""The paper in miniature (arXiv 2507.16116, sections 3.2 to 3.4): its comparisons on the embedded base model and world.

`training_methods.py` defines the methods, `training.py` trains them and `networks.py` is the network that they train.
`experiments.py` lists the experiments of each table and `scoring.py` makes and scores their clips. `inspection.py`
looks into the trained models. `study.py` turns all this into units of work in a `study_folder.py`. `tables.py` defines
the tables with the paper's numbers, `verdicts.py` computes ours, `figures.py` draws them, and `report.py` writes them.
"""
