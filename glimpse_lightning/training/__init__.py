"""Fitting a pruner under Lightning."""
