"""Time, FLOPs and memory of one pass of a model, pruned or not."""
