"""Pretraining of the embedded backbones from random weights, on pages of the drawn benchmarks."""
