"""The seed of a run."""

from __future__ import annotations

import os


def global_seed() -> int:
    """The seed given to ``seed_everything``; 0 if it was not called."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))
