"""A paper's tables, run again and compared with the paper."""
