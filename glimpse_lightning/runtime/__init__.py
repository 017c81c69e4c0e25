"""Errors, ranks, seeds, data types and files, used by all other rooms. No module here imports a model or tokens."""
