"""Stable numbers for names."""

from __future__ import annotations

import hashlib


def stable_key(name: str) -> int:
    """A non-negative integer below 2**63 computed from ``name``, the same on every machine and in every process."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
