"""``bench``: what pruning saves, measured beside what theory says it should."""
