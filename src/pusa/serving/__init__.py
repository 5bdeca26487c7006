"""Clips over HTTP: jobs that wait, workers that make them, and what may go wrong in between."""
