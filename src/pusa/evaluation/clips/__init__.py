"""Scores of clips from any program, computed from their pixels: fidelity, motion, joins; and an HTML report."""
