"""CDPruner's relevance: the distance of a token from the question."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glimpse_lightning.core.visual_tokens import ModelFacts, VisualTokens
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.scorers.base import Requires, Scorer


class QuestionRelevance(Scorer):
    """``-mean_t cos(x_i, t)`` over the question's parts ``t``, in [-1, 1] (CDPruner, arXiv 2506.10967).

    **Mind the minus**: CDPruner takes the *negated* similarity as relevance; the plain one is another method
    (``negate: false``).

    With ``clip``, ``x_i`` is the state after the second to last block of the backbone's vision tower, which LLaVA's
    projector reads (``hidden_states[-2]``), through that CLIP model's final norm and projection. The ``t`` are
    embeddings by its text tower of the raw question: one, or several if the question is longer than the tower's limit
    of 77 tokens. The text tower is the scorer's own, loaded from ``clip``; the vision tower is the backbone's, so it
    must *be* that CLIP model's (LLaVA-1.5: CLIP-L/336).

    Departure, the fallback if no ``clip`` is given (and the only way on backbones without a CLIP vision tower): cosines
    of the visual tokens' states at the stage with those of all text tokens of the prompt, the chat template's included;
    before layer 0 these are embeddings. The minus was chosen for CLIP. With the fallback, compare it with ``negate:
    false``, which may be better.

    The policy ``DPP`` scales relevance to [0, 1], image by image.

    Args:
        clip: hub id or folder of a CLIP model with its tokenizer; ``None``: the fallback.
        negate: whether tokens far from the question score higher (CDPruner's minus).
    """

    def __init__(self, clip: str | None = None, negate: bool = True) -> None:
        super().__init__()
        self.clip = clip
        self.negate = negate
        self._vision_layer = -1
        self._parts: tuple[nn.ModuleDict, Any] | None = None  # in a tuple: not registered, nor saved

    def build(self, facts: ModelFacts, after_layer: int) -> None:
        if self.clip is None:
            return
        self._vision_layer = max(0, facts.vision_layers - 2)  # CDPruner applies the last norm to this one's states
        self._parts = _load(self.clip)
        width = self._parts[0]["visual"].in_features
        if width != facts.vision_hidden_size:
            raise GlimpseError(
                "Expected `clip` to be the CLIP model of the backbone's vision tower (width "
                f"{facts.vision_hidden_size}), but {self.clip} has width {width}. Name the right one, or leave `clip` "
                "out: embeddings are compared then."
            )

    @property
    def requires(self) -> Requires:
        return Requires(text=True) if self.clip is None else Requires(vision_layers=(self._vision_layer,))

    def forward(self, tokens: VisualTokens) -> Tensor:
        """Relevance ``[V]``."""
        if self._parts is None:
            assert tokens.text is not None and tokens.text_sample is not None
            visual, text, owner = tokens.hidden.float(), tokens.text.float(), tokens.text_sample
        else:
            visual, text, owner = self._by_clip(tokens, *self._parts)
        unit = F.normalize(text, dim=-1)  # the mean of cosines is the cosine with the mean of unit vectors
        total = unit.new_zeros(tokens.num_samples, unit.shape[-1]).index_add(0, owner, unit)
        mean = total / torch.bincount(owner, minlength=tokens.num_samples).clamp(min=1)[:, None]
        similarity = (F.normalize(visual, dim=-1) * mean[tokens.sample]).sum(-1)
        return -similarity if self.negate else similarity

    @torch.no_grad()
    def _by_clip(self, tokens: VisualTokens, parts: nn.ModuleDict, tokenizer: Any) -> tuple[Tensor, Tensor, Tensor]:
        """``(visual [V, d], text [parts, d], sample [parts])``."""
        parts.to(tokens.hidden.device)
        questions = [question or " " for question in tokens.questions] or [" "] * tokens.num_samples
        if not questions:
            return tokens.hidden.float(), tokens.hidden.float(), tokens.sample
        config: Any = parts["text_model"].config
        longest = min(tokenizer.model_max_length, config.max_position_embeddings)
        inputs = tokenizer(
            questions, padding=True, truncation=True, max_length=longest, return_overflowing_tokens=True,
            return_tensors="pt",
        ).to(tokens.hidden.device)  # fmt: skip
        pooled = parts["text_model"](
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).pooler_output
        visual = parts["visual"](parts["norm"](tokens.vision[self._vision_layer].float()))
        return visual, parts["text"](pooled), inputs["overflow_to_sample_mapping"]


def _load(name: str) -> tuple[nn.ModuleDict, Any]:
    """Text tower, both projections and the vision tower's final norm, in fp32; and the tokenizer."""
    from transformers import AutoTokenizer, CLIPModel

    try:
        model, tokenizer = CLIPModel.from_pretrained(name, dtype=torch.float32), AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise GlimpseError(
            f"Could not load CLIP model {name!r}: {str(error).strip().splitlines()[0]} Expected a hub id or a folder; "
            "or leave `clip` out: embeddings of question and image are compared then."
        ) from error
    parts = {"text_model": model.text_model, "text": model.text_projection, "visual": model.visual_projection}
    return nn.ModuleDict(parts | {"norm": model.vision_model.post_layernorm}).eval().requires_grad_(False), tokenizer
