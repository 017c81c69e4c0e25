"""The terms of the field: visual tokens and their segments, token counts, layers."""
