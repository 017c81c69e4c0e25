"""Questions from tables: on the Hub or in files, with a mapping of columns."""
