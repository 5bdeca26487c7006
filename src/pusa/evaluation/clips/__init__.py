"""Scores of clips of any program, from their pixels: fidelity, motion, joins, and an HTML report."""
