"""Every check of the conformance kit over a tiny random model of each family, under each CPU attention kernel."""

from __future__ import annotations

import pytest
from tiny_models import FAMILIES

import glimpse_lightning as gl
from glimpse_lightning.testing import CHECKS


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_conformance(family, attention, check):
    check(gl.wrap_backbone(FAMILIES[family](attention)))
