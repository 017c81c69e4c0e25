"""lmms-eval wants torchvision, of which there is no build for a CPU-only torch: its registration of operators fails for
want of these two, which nothing here calls.
"""

from importlib.util import find_spec

import torch

if find_spec("torchvision") and not torch.version.cuda:
    OPERATORS = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
