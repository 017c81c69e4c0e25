"""Tests with the real lmms-eval: ``nox -s lmms-eval``. Where it is not installed, they are left out."""

from __future__ import annotations

from importlib.util import find_spec

import torchvision_operators  # noqa: F401  (before lmms-eval imports torchvision)

collect_ignore_glob = [] if find_spec("lmms_eval") else ["test_*.py"]
