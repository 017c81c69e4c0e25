"""A web page on which a picture is asked with and without pruning."""
