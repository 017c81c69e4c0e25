"""What everything else stands on: errors, files, ranks, seeds; nothing here knows of tokens."""
