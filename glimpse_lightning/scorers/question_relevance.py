"""CDPruner's relevance: how far a token is from the question."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from glimpse_lightning.errors import GlimpseError
from glimpse_lightning.scorers.base import Requires, Scorer
from glimpse_lightning.visual_tokens import ModelFacts, VisualTokens


class QuestionRelevance(Scorer):
    """``-mean_t cos(x_i, t)`` over the question's tokens ``t``, in [-1, 1] (CDPruner, arXiv 2506.10967).

    **Mind the minus**: CDPruner takes the *negated* similarity as relevance; the plain one is another method
    (``negate: false``).

    With ``clip``, ``x_i`` is the vision tower's last state through that CLIP model's final norm and projection, and
    ``t`` is its text embedding of the raw question (one vector; CDPruner cuts long questions into parts, here they are
    cut short). This needs a backbone whose vision tower *is* that CLIP model's (LLaVA-1.5: CLIP-L/336).

    Departure, the fallback where no ``clip`` is given: cosines of the visual tokens' states at the stage with those of
    all text tokens of the prompt, the chat template's included; before layer 0 these are embeddings. The minus was made
    for CLIP; with the fallback ``negate: false`` may well be the better choice: try both.

    Args:
        clip: hub id or folder of a CLIP model.
        negate: whether far means relevant.
    """

    def __init__(self, clip: str | None = None, negate: bool = True) -> None:
        super().__init__()
        self.clip = clip
        self.negate = negate
        self._vision_layer = -1
        self._model: tuple[Any, Any] | None = None  # in a tuple: not part of this module, nor of a saved pruner

    def build(self, facts: ModelFacts, after_layer: int) -> None:
        if self.clip is None:
            return
        self._vision_layer = facts.vision_layers - 1
        self._model = _load(self.clip)
        width = self._model[0].config.vision_config.hidden_size
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
        visual, text = self._by_states(tokens) if self._model is None else self._by_clip(tokens)
        similarity = (F.normalize(visual, dim=-1) * text[tokens.sample]).sum(-1)
        return -similarity if self.negate else similarity

    def _by_states(self, tokens: VisualTokens) -> tuple[Tensor, Tensor]:
        """``(visual [V, D], text [S, D])``; the mean of cosines is the cosine with the mean of unit vectors."""
        assert tokens.text is not None and tokens.text_sample is not None
        unit = F.normalize(tokens.text.float(), dim=-1)
        total = unit.new_zeros(tokens.num_samples, unit.shape[-1]).index_add(0, tokens.text_sample, unit)
        count = torch.bincount(tokens.text_sample, minlength=tokens.num_samples).clamp(min=1)
        return tokens.hidden.float(), total / count[:, None]

    @torch.no_grad()
    def _by_clip(self, tokens: VisualTokens) -> tuple[Tensor, Tensor]:
        assert self._model is not None
        model, tokenizer = self._model
        model.to(tokens.hidden.device)
        states = model.vision_model.post_layernorm(tokens.vision[self._vision_layer].float())
        questions = [question or " " for question in tokens.questions] or [" "] * tokens.num_samples
        inputs = tokenizer(questions, padding=True, truncation=True, return_tensors="pt").to(tokens.hidden.device)
        pooled = model.text_model(**inputs).pooler_output
        return model.visual_projection(states), F.normalize(model.text_projection(pooled), dim=-1)


def _load(name: str) -> tuple[Any, Any]:
    from transformers import AutoTokenizer, CLIPModel

    try:
        return CLIPModel.from_pretrained(name, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise GlimpseError(
            f"Could not load CLIP model {name!r}: {str(error).strip().splitlines()[0]} Expected a hub id or a folder; "
            "or leave `clip` out: embeddings of question and image are compared then."
        ) from error
