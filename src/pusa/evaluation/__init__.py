"""Measure the quality of clips and models: exactly where the truth is known, otherwise with established libraries."""
