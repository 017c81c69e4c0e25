"""The seed of a run."""

from __future__ import annotations

import os


def global_seed() -> int:
    """What ``seed_everything`` was called with; 0 where it was not."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))
