"""Losses of pretraining: which words a visual token shows, and answers to packed questions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from glimpse_lightning.pretraining.packing import PackedBatch

_SHARPNESS = 12.0  # logit = 12 (h . l - 1/2): a visual token that equals the sum of its words' looks scores +-6


def visual_features(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """Visual tokens of the batch: [B * N, D]."""
    return torch.cat([*model.model.get_image_features(**batch.pixels).pooler_output])


def ideal_features(looks: Tensor, words_VW: Tensor, seed: int, noise: float = 0.03) -> Tensor:
    """Ideal visual tokens [V, D]: the sum of the looks of their words and of the placeholder, and noise.

    Args:
        looks: how words look, [W + 1, D], the placeholder's last.
        words_VW: int8 label of each word: 1 shown, 0 not shown, -1 shown in part, which is one or the other at random.
        seed: seed of all random choices.
        noise: standard deviation of the noise.
    """
    rng = torch.Generator(looks.device).manual_seed(seed)
    sliver = (words_VW < 0) & (torch.rand(words_VW.shape, generator=rng, device=looks.device) < 0.5)
    shown = (words_VW.clamp(min=0) + sliver).to(looks.dtype)
    blur = torch.randn(len(shown), looks.shape[1], generator=rng, device=looks.device)
    return shown @ looks[:-1] + looks[-1] + noise * blur


def vision_loss(looks: Tensor, features_VD: Tensor, words_VW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Every visual token shows its words and no others; all of them also show the image placeholder.

    The squared distance to the ideal token removes components that stand for no word. Without it visual tokens became
    ten times longer than ideal ones, and the decoder could not read them.

    Args:
        looks: how words look, [W + 1, D], which is the classifier; it gets no gradient.
        features_VD: visual tokens.
        words_VW: int8 label of each word, 1 shown, 0 not shown, -1 not counted.
    """
    logits = _SHARPNESS * (features_VD.float() @ looks.T - 0.5)
    goal = torch.cat([words_VW, torch.ones_like(words_VW[:, :1])], dim=1)
    loss = nn.functional.binary_cross_entropy_with_logits(logits, goal.clamp(min=0).float(), reduction="none")
    counted = goal >= 0
    loss = (loss * counted).sum() / len(goal)
    whole = counted.all(1)
    ideal = goal[whole].to(looks.dtype) @ looks
    distance = (features_VD[whole].float() - ideal).square().sum(1).mean()
    shows = (goal[:, :-1] == 1).any(1)
    right = ((logits > 0) == (goal == 1)).logical_or(~counted).all(1)
    logs = {"tokens_right": right[shows].float().mean(), "blank_right": right[~shows].float().mean()}
    return loss + distance, logs | {"distance": distance.detach()}


def packed_answer_loss(model: PreTrainedModel, features_VD: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Cross-entropy on the answers of all packed questions, and which questions were answered exactly.

    Returns:
        The loss, and bool [Q]: true where the token of the highest logit is right at every place, as in greedy
        decoding.
    """
    embeds = model.get_input_embeddings()(batch.input_ids)
    places = (batch.input_ids == model.config.image_token_id)[:, :, None]
    embeds = embeds.masked_scatter(places, features_VD.to(embeds.dtype))
    mask = batch.mask
    if model.config._attn_implementation == "eager":  # which adds the mask to its logits
        mask = torch.where(mask, 0.0, -1e4).to(torch.bfloat16)
    out = model.model.language_model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=batch.position_ids, use_cache=False
    )
    asked = batch.question >= 0
    logits, targets = model.lm_head(out.last_hidden_state[asked]).float(), batch.targets[asked]
    loss = nn.functional.cross_entropy(logits, targets)
    exact = torch.ones(len(batch.families), dtype=torch.bool, device=logits.device)
    exact[batch.question[asked][logits.argmax(-1) != targets]] = False
    return loss, exact
