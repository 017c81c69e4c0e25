"""Suggestions for misspelt names."""

from __future__ import annotations

import pytest

from glimpse_lightning.runtime.errors import nearest


@pytest.mark.parametrize(
    ("name", "choices", "said"),
    [
        ("ratoi", ["count", "ratio", "per"], " Did you mean ratio?"),
        ("vip_lk", ["vip_kl", "vip_kl2", "methods/vtw"], " Did you mean vip_kl or vip_kl2?"),
        ("vtw", ["methods/vtw", "methods/random"], " Did you mean methods/vtw?"),  # 6 of 14 characters are alike
        ("zzz", ["ratio", "count"], ""),
    ],
)
def test_nearest(name: str, choices: list[str], said: str) -> None:
    assert nearest(name, choices) == said
