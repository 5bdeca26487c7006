"""Estimate the memory that a clip needs, without reading weights, and place a model so that it needs less."""
