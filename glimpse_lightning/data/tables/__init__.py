"""Tables of rows: from the Hub, from files, by their columns."""
