"""Rollouts: answers sampled after pruned prompts, and their advantages.

Suffixes: ``B`` prompts, ``P`` pruned prefills (those of a prompt in a row), ``R`` answers (those of a prefill in a
row), ``T`` tokens.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig

from glimpse_lightning.engine.prefill import PrefillOutput
from glimpse_lightning.objectives.keep_choice import KeepChoice, choose
from glimpse_lightning.objectives.policy_gradient import sequence_mask
from glimpse_lightning.rewards import RewardFacts

if TYPE_CHECKING:
    from glimpse_lightning.data.batch import Batch
    from glimpse_lightning.model.pruned_vlm import PrunedVLM


@dataclass
class Rollout:
    """Answers from one or more pruned prefills of each prompt.

    Attributes:
        ids, mask: ``[R, T]`` tokens, and which belong to the answer (up to and including its end token).
        log_probs: ``[R, T]`` under the policy that sampled them.
        choice: which visual tokens were kept.
        retention: ``[P]`` share of kept tokens; NaN for prompts without any visual token.
        reference: ``[R, T]`` log-probabilities under the frozen reference; ``None`` unless its KL is weighted.
        advantages: ``[R]`` advantages of the answers, for the language model.
        worth: ``[P]`` mean advantage of the answers after each prefill, for its keep decisions.
        replayed: whether ``log_probs`` are those of the first replay instead.
    """

    ids: Tensor
    mask: Tensor
    log_probs: Tensor
    choice: KeepChoice
    retention: Tensor
    reference: Tensor | None = None
    advantages: Tensor | None = None
    worth: Tensor | None = None
    replayed: bool = False

    def to(self, device: torch.device) -> Rollout:
        """The same rollout on a device; a checkpoint gives it back on another one."""
        if self.ids.device == device:
            return self
        return Rollout.from_state(move_data_to_device(self.to_state(), device))

    def to_state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Rollout:
        return cls(**{**state, "choice": KeepChoice(**state["choice"])})


def token_log_probs(logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """``[R, T]`` log-probabilities of ``ids [R, T]`` under ``logits [R, T, vocab]`` at a sampling temperature."""
    scaled = logits.float() / temperature
    return scaled.gather(-1, ids[..., None])[..., 0] - scaled.logsumexp(-1)


@torch.no_grad()
def sample_answers(
    model: PrunedVLM,
    batch: Batch,
    answers: int,
    max_new_tokens: int,
    temperature: float,
    prefills: int = 1,
    draw: bool = False,
    oracle: Tensor | None = None,
) -> Rollout:
    """``answers`` answers from each of ``prefills`` pruned prefills of each prompt.

    They are sampled from the whole distribution at ``temperature``. Top-k, top-p and repetition penalties of the
    model's own generation settings are ignored, since they would sample from another distribution than the one trained.

    Args:
        draw, oracle: arguments of :func:`~glimpse_lightning.objectives.keep_choice.choose`; by default the policy
            chooses the kept tokens.
    """
    choice = KeepChoice()
    oracle = torch.zeros_like(batch.key, dtype=torch.bool) if oracle is None else oracle
    out = model.prefill(
        prompt=model.embed(batch), keys=batch.key, questions=batch.questions, boxes=batch.boxes, shared=batch.shared,
        select=choose(choice, draw, oracle.repeat_interleave(prefills)), copies=prefills,
    )  # fmt: skip
    own = model.generation_config
    config = GenerationConfig(
        do_sample=True, num_beams=1, num_return_sequences=answers, max_new_tokens=max_new_tokens,
        temperature=temperature, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0, epsilon_cutoff=0.0, eta_cutoff=0.0,
        repetition_penalty=1.0, no_repeat_ngram_size=0, min_length=0,
        eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    generated = model.generate(prefill=out, generation_config=config)
    ids: Tensor = generated.sequences
    log_probs = torch.stack(
        [token_log_probs(logits, ids[:, step], temperature) for step, logits in enumerate(generated.logits)], 1
    )
    mask = sequence_mask(ids, end_ids(model))
    if model.sharded and ids.shape[1] == 1:  # no token would run through the layers when it is replayed
        ids, mask, log_probs = one_more(ids), one_more(mask), one_more(log_probs)
    return Rollout(ids, mask, log_probs, choice, retention_by_prompt(out, len(batch.samples) * prefills))


def one_more(values: Tensor) -> Tensor:
    """``values [R, T]`` followed by a column of padding, zeros."""
    return F.pad(values, (0, 1))


def end_ids(model: PrunedVLM) -> Tensor:
    """The tokens that end an answer."""
    return torch.tensor(model.backbone.end_token_ids, dtype=torch.int64, device=model.device)


def retention_by_prompt(out: PrefillOutput, prompts: int) -> Tensor:
    """``[B]`` share of its visual tokens that each prompt keeps; NaN where it has none."""
    kept = torch.bincount(out.tokens.sample, out.kept().float(), minlength=prompts)
    total = torch.bincount(out.tokens.sample, minlength=prompts)
    return (kept / total).float()


def mean_known(values: Tensor) -> Tensor:
    """Mean of ``values`` without NaN; 0 where all are NaN."""
    known = values[~values.isnan()]
    return known.mean() if len(known) else torch.zeros(())


def reward_facts(model: PrunedVLM, batch: Batch, rollout: Rollout) -> list[RewardFacts]:
    """Facts about each of the ``R`` answers, for rewards."""
    texts = model.backbone.decode(ids[mask] for ids, mask in zip(rollout.ids, rollout.mask, strict=True))
    lengths = rollout.mask.sum(1)
    finished = torch.isin(rollout.ids.gather(1, lengths[:, None] - 1)[:, 0], end_ids(model)).tolist()
    answers = len(texts) // len(batch.samples)
    samples = [sample for sample in batch.samples for _ in range(answers)]
    retention = rollout.retention.nan_to_num(1.0).repeat_interleave(len(texts) // len(rollout.retention)).tolist()
    return [
        RewardFacts(
            question=samples[row].question,
            answer=text,
            references=tuple(samples[row].answers),
            boxes=samples[row].boxes,
            retention=retention[row],
            tokens=int(lengths[row]),
            finished=finished[row],
        )
        for row, text in enumerate(texts)
    ]
