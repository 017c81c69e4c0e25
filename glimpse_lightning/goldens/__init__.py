"""What a method's own code selects on random tensors, kept in a file, and ports compared with it."""
