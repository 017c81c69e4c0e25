"""``ablate``: many runs of one recipe, changed along axes, and the tables and plots that compare them."""
