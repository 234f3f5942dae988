"""Quantizing a model: what `penstock quantize` does, from plan to folder."""
