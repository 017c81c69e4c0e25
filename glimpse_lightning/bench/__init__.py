"""``bench``: measured savings of pruning, next to the theoretical ones."""
