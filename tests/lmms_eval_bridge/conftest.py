"""Tests with the real lmms-eval: ``nox -s lmms-eval``. Where it is not installed, they are left out."""

from __future__ import annotations

from importlib.util import find_spec

import torch

collect_ignore_glob = [] if find_spec("lmms_eval") else ["test_*.py"]

if find_spec("torchvision") and not torch.version.cuda:
    # lmms-eval wants torchvision, of which there is no build for a CPU-only torch: its registration of operators fails
    # for want of these two, which nothing here calls.
    OPERATORS = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
