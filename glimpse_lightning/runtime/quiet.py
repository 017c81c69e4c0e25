"""Filters for warnings and advice of other packages that do not apply here."""

from __future__ import annotations

import logging
import os
import warnings

import transformers


def quieten() -> None:
    """Silence advice that does not apply here; the reason stands next to each message."""
    for message in (
        ".*does not have many workers.*",  # rendering keeps up with one
        ".*eval mode at the start of training.*",  # the frozen backbone is meant to be
        ".*dataloader is not resumable.*",  # its order follows from the number of batches done: data/order.py
        ".*LeafSpec.*is deprecated.*",  # inside Lightning
        r"(?s).*(instantiate_classes.. was deprecated|JsonargparseDeprecationWarning).*",  # inside Lightning
        ".*You have overridden .* in `LightningModule` but.*",  # the module owns the processor
        ".*FSDP2-wrapped module .FSDPPrunedVLM. returned a view.*",  # it holds no parameters itself
        ".*Mismatch dtype between input and weight.*Cannot dispatch to fused.*",  # norms under autocast, as intended
        ".*It is recommended to use `self.log.*sync_dist=True.*",  # figures are of all ranks already
    ):
        warnings.filterwarnings("ignore", message)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.trainer.connectors.checkpoint_connector"):
        logging.getLogger(name).addFilter(_is_news)
    transformers.utils.logging.disable_progress_bar()
    # Two lines of torch's profiler for each pass that it measures, which level 5 lets through. It is read at the first.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")


def _is_news(line: logging.LogRecord) -> bool:
    """False for Lightning's advertisement, and for its remark about a default that is right here."""
    return not any(word in str(line.msg) for word in ("litlogger", "`weights_only` was not set"))
