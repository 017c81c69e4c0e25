"""GRPO: the pruned model is rewarded for its own sampled answers (GlimpsePrune+)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from glimpse_lightning.backbones.lora import LoRA
from glimpse_lightning.core.segments import segment_mean
from glimpse_lightning.objectives.base import StepResult
from glimpse_lightning.objectives.keep_choice import repeat
from glimpse_lightning.objectives.losses import k3
from glimpse_lightning.objectives.policy_gradient import (
    Mean,
    Variant,
    clipped_objective,
    group_advantages,
    group_deviation,
    reduce_tokens,
)
from glimpse_lightning.objectives.rollouts import Rollout, mean_known, reward_facts, sample_answers, token_log_probs
from glimpse_lightning.objectives.trained_parts import AnswerObjective, Part
from glimpse_lightning.rewards import CombinedReward
from glimpse_lightning.runtime.ranks import mean_over_ranks

if TYPE_CHECKING:
    from glimpse_lightning.data.batch import Batch
    from glimpse_lightning.model.pruned_vlm import PrunedVLM

Logs = dict[str, Tensor]
PRICED = "pruning_rate"
STIFFNESS = 6.0  # a tenth more tokens than the budget: nearly twice the price
LARGEST_EXCESS = 0.5  # bounds the price where a pruner keeps all tokens at first


class GRPO(AnswerObjective):
    """Group-relative policy optimisation (DeepSeekMath, arXiv 2402.03300) on pruned prompts.

    For each prompt ``group_size`` answers are sampled from its pruned cache. An answer's advantage is its reward
    compared with its group's, by the formula of ``variant``. The tokens' log-probabilities are those of the rollout's
    own forward: pruned after the same layers, with the same tokens kept, and all layers' pruned keys and values read.
    With ``pruner`` in ``train``, each keep decision is a Bernoulli action of probability ``sigmoid(score)`` (so scorers
    must return logits), rewarded with the mean advantage of the answers that follow it. The answers of a group then
    come from several prefills that keep different tokens, while validation keeps the policy's choice. ``pruning_rate``
    counts for these decisions only, as no answer can change it.

    GlimpsePrune's stage 2 (arXiv 2508.01548) is ``rollout_masks: oracle``, ``old: replay``, ``clip: null``, ``forward:
    embeddings``, ``group_size: 4``, ``kl_weight: 0.04``, ``mean: sequence``; its top-k of 50 in sampling is not copied.

    Args:
        rewards: weights by name; see :class:`~glimpse_lightning.rewards.CombinedReward`.
        train: ``language_model``, ``pruner`` or both.
        lora: adapters that are trained in place of the language model's own weights.
        group_size: answers to each prompt.
        prefills: pruned prefills of each prompt from which its answers are sampled; ``None``: 1, or with the pruner
            trained 4 (or ``group_size``, where that is less).
        temperature: temperature of sampling, and of the distribution that is trained.
        max_new_tokens: longest answer, in tokens.
        iterations: steps on the same answers.
        clip: distances below and above 1 at which the ratio is clipped; ``None``: it is not clipped.
        variant: formula of the advantage: ``grpo``, ``dr_grpo`` or ``rloo``.
        mean: mean over the tokens' losses: ``sequence``, ``token`` or ``constant``; ``None``: that of the variant's
            paper.
        kl_weight: weight of the k3 estimate of KL(policy || frozen reference).
        pruner_weight: weight of the loss of the keep decisions, a mean over a prompt's decisions.
        retention: mean share of visual tokens that the rollouts have to keep. The weight of ``pruning_rate`` among the
            ``rewards`` is then only the initial price of the tokens. With ``e = kept / retention - 1`` of a batch of
            rollouts (0.5 at most), that batch pays ``price * exp(6 e)``, at once, and the price of the next ones is
            multiplied by ``exp(price_rate * e)``, so that it settles where the pruner meets the budget. Shares may
            differ between prompts: only their mean counts. ``None``: the price stays the weight of ``pruning_rate``.
        price_rate: rate at which the price moves.
        rollout_masks: tokens that rollouts keep: the choice of the ``policy``, those that evidence boxes touch
            (``oracle``), or the latter for a random share ``oracle_share`` of prompts (``mixed``).
        oracle_share: share of prompts in ``mixed`` that keep the tokens of their evidence boxes.
        old: denominator of the ratio: the log-probabilities of the ``rollout``, or those of the first ``replay``. With
            the latter the ratio is exactly 1 at first in every precision, also under dropout.
        forward: forward that predicts the answers' tokens: that of the ``rollout``, or one over pruned input
            ``embeddings``, as in GlimpsePrune's stage 2.
    """

    def __init__(
        self,
        rewards: dict[str, float | dict[str, Any]] = {"exact_match": 1.0},  # noqa: B006  (never changed)
        train: Sequence[Part] = ("language_model",),
        lora: LoRA | None = None,
        group_size: int = 8,
        prefills: int | None = None,
        temperature: float = 1.0,
        max_new_tokens: int = 32,
        iterations: int = 1,
        clip: tuple[float, float] | None = (0.2, 0.2),
        variant: Variant = "grpo",
        mean: Mean | None = None,
        kl_weight: float = 0.04,
        pruner_weight: float = 1.0,
        retention: float | None = None,
        price_rate: float = 0.01,
        rollout_masks: Literal["policy", "oracle", "mixed"] = "policy",
        oracle_share: float = 0.5,
        old: Literal["rollout", "replay"] = "rollout",
        forward: Literal["rollout", "embeddings"] = "rollout",
    ) -> None:
        super().__init__(train, lora)
        if prefills is None:
            prefills = min(4, group_size) if self.trains_pruner else 1
        _check(group_size=group_size, prefills=prefills, max_new_tokens=max_new_tokens, iterations=iterations)
        if group_size < 2 or group_size % prefills:
            raise ValueError(
                f"Expected `group_size` to be at least 2 and a multiple of `prefills` = {prefills}, but got "
                f"{group_size}."
            )
        if self.trains_pruner and prefills < 2:
            raise ValueError("Expected `prefills` of 2 or more where the pruner is trained: one alone has no rival.")
        if self.trains_pruner and rollout_masks == "oracle":
            raise ValueError("Expected `rollout_masks` policy or mixed where the pruner is trained: it has to decide.")
        if temperature <= 0:
            raise ValueError(f"Expected `temperature` to be positive, but got {temperature}.")
        if forward == "embeddings" and old == "rollout":
            raise ValueError("Expected `old: replay` with `forward: embeddings`: that is not how answers are sampled.")
        if lora is not None and lora.dropout > 0 and old == "rollout":
            raise ValueError("Expected `old: replay` with dropout in LoRA: the rollout drops other inputs.")
        self.reward = CombinedReward(rewards)
        if retention is not None:
            if not 0 < retention <= 1:
                raise ValueError(f"Expected `retention` to be in (0, 1], but got {retention}.")
            if not self.trains_pruner or self.reward.weights.get(PRICED, 0) <= 0:
                raise ValueError(
                    f"Expected the pruner to be trained, and a reward `{PRICED}` of positive weight, where `retention` "
                    f"is given: its price is what meets the budget. Add them, or leave `retention` out."
                )
        self.group_size = group_size
        self.prefills = prefills
        self.temperature = temperature
        self.max_new_tokens = max_new_tokens
        self.repeats = iterations
        self.clip = clip
        self.variant = variant
        self.mean: Mean = mean or ("constant" if variant == "dr_grpo" else "sequence")
        self.kl_weight = kl_weight
        self.pruner_weight = pruner_weight
        self.retention = retention
        self.price_rate = price_rate
        self.price = self.reward.weights.get(PRICED, 0.0)
        self.rollout_masks = rollout_masks
        self.oracle_share = oracle_share
        self.old = old
        self.forward = forward
        self._rollouts: dict[str, tuple[int, Rollout]] = {}

    def remember(self, model: PrunedVLM) -> None:
        if self.kl_weight > 0:
            self.keep_reference(model)

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("answers",) * self.reward.reads_references + ("boxes",) * (self._oracle_share > 0)

    @property
    def _oracle_share(self) -> float:
        return {"policy": 0.0, "oracle": 1.0, "mixed": self.oracle_share}[self.rollout_masks]

    def step(self, model: PrunedVLM, batch: Batch) -> StepResult:
        """One step; logs rewards, advantages, ``kl``, ``entropy``, ``clipped``, ``ratio``, lengths and retention."""
        batch = self.seen(model, batch, self.prefills)
        name = ",".join(map(str, batch.key.tolist()))
        visits, rollout = self._rollouts.pop(name, (0, None))
        logs: Logs = {}
        if rollout is None:
            rollout, logs = self.roll_out(model, batch)
            # Autocast has cast weights for the rollout without a graph, and would use these again.
            torch.clear_autocast_cache()
        rollout = rollout.to(batch.key.device)
        loss, found = self.rollout_loss(model, batch, rollout)
        if visits + 1 < self.repeats:
            self._rollouts[name] = (visits + 1, rollout)
        return StepResult(loss, logs | found)

    # -- rollouts -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def roll_out(self, model: PrunedVLM, batch: Batch) -> tuple[Rollout, Logs]:
        """Sample answers to each prompt and weigh them against each other."""
        oracle = self._oracle_prompts(batch)
        rollout = sample_answers(
            model, batch, self.group_size // self.prefills, self.max_new_tokens, self.temperature,
            self.prefills, draw=self.trains_pruner, oracle=oracle,
        )  # fmt: skip
        if self.retention is not None:
            other = oracle | (batch.weight == 0)
            mine = ~(other.repeat_interleave(self.prefills) | rollout.retention.isnan())
            self._set_price(rollout.retention[mine])
        facts = reward_facts(model, batch, rollout)
        rewarded = self.reward(facts)
        rewards = torch.tensor(rewarded.total, device=batch.key.device).view(len(batch.samples), -1)
        valid = ~rewards.isnan()
        advantages = group_advantages(rewards, valid, self.variant)
        ties = (advantages == 0).all(1).float().mean()
        known = valid.view(len(rollout.retention), -1).sum(1).clamp(min=1)
        rollout.worth = advantages.view(len(rollout.retention), -1).sum(1) / known  # others' advantage is 0
        if PRICED in rewarded.parts:
            weight = self.reward.weights[PRICED]  # taken off in double precision, where it leaves no trace
            free = [total - weight * rate for total, rate in zip(rewarded.total, rewarded.parts[PRICED], strict=True)]
            advantages = group_advantages(rewards.new_tensor(free).view_as(rewards), valid, self.variant)
        rollout.advantages = advantages.flatten()
        if self.kl_weight > 0 and self.trains_language_model:
            rollout.reference = self._reference_log_probs(model, batch, rollout)
        logs = {f"reward/{part}": mean_known(torch.tensor(values)) for part, values in rewarded.parts.items()}
        logs |= {f"reward/{what}": torch.tensor(count) for what, count in self.reward.counts.items()}
        lengths = rollout.mask.sum(1).float()
        logs |= {
            "reward": mean_known(rewards),
            "reward_std": group_deviation(rewards, valid).mean(),
            "ties": ties,
            "length": lengths.mean(),
            "length_max": lengths.max(),
            "finished": torch.tensor([fact.finished for fact in facts]).float().mean(),
            "hard_retention": mean_known(rollout.retention),
        }
        if self.retention is not None:
            logs["price"] = torch.tensor(self.reward.weights[PRICED])
        return rollout, logs

    def _set_price(self, kept: Tensor) -> None:
        """Raise the price of tokens where more are kept than the budget allows, and lower it where fewer are.

        The factor of the current batch keeps the price from overshooting, which the pruner follows with a delay.

        Args:
            kept: shares kept by the prompts whose tokens the pruner has chosen. Where no rank has any, the price stays.
        """
        assert self.retention is not None
        total, count = mean_over_ranks(torch.stack([kept.sum(), kept.new_tensor(float(len(kept)))])).tolist()
        if not count:
            return
        excess = min(total / count / self.retention - 1, LARGEST_EXCESS)
        self.reward.weights[PRICED] = self.price * math.exp(STIFFNESS * excess)
        self.price *= math.exp(self.price_rate * excess)

    def _oracle_prompts(self, batch: Batch) -> Tensor:
        """``[B]`` prompts whose visual tokens are chosen by evidence boxes."""
        drawn = torch.rand(len(batch.samples), device=batch.key.device) < self._oracle_share
        return drawn & torch.tensor([sample.boxes is not None for sample in batch.samples], device=drawn.device)

    def _log_probs(
        self, model: PrunedVLM, batch: Batch, rollout: Rollout, scored: bool
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Log-probabilities ``[R, T]`` of a rollout's tokens, their entropy ``[R, T]``, and, where the visual tokens
        are to be ``scored``, those of its actions.
        """
        actions: list[Tensor] | None = [] if scored else None
        out = model.replay(
            batch, rollout.ids, rollout.mask, select=repeat(rollout.choice, actions), scored=scored,
            copies=self.prefills, from_embeddings=self.forward == "embeddings",
        )  # fmt: skip
        with torch.no_grad():
            logs = (out.logits.float() / self.temperature).log_softmax(-1)
            entropy = -(logs.exp() * logs).sum(-1)
        return token_log_probs(out.logits, rollout.ids, self.temperature), entropy, actions or []

    def _reference_log_probs(self, model: PrunedVLM, batch: Batch, rollout: Rollout) -> Tensor:
        """``[R, T]`` under the frozen reference; with ``forward: embeddings`` the first token is the unpruned model's,
        as in GlimpsePrune's stage 2.
        """
        with self.reference(model.backbone):
            log_probs = self._log_probs(model, batch, rollout, scored=False)[0]
            if self.forward == "embeddings":
                ids, mask = rollout.ids[:, :1], rollout.mask[:, :1]
                whole = model.replay(
                    batch, ids, mask, select=lambda stage, scores, _: scores > -torch.inf, scored=False,
                    copies=self.prefills,
                )  # fmt: skip
                log_probs[:, :1] = token_log_probs(whole.logits, ids, self.temperature)
        return log_probs

    # -- loss ---------------------------------------------------------------------------------------------------

    def rollout_loss(self, model: PrunedVLM, batch: Batch, rollout: Rollout) -> tuple[Tensor, Logs]:
        """Loss of the answers, and the figures to log."""
        assert rollout.advantages is not None
        log_probs, entropy, actions = self._log_probs(model, batch, rollout, scored=self.trains_pruner)
        if self.old == "replay" and not rollout.replayed:
            rollout.log_probs, rollout.replayed = log_probs.detach(), True
            rollout.choice.log_probs = [part.detach() for part in actions]
        answers = len(rollout.ids) // len(batch.samples)
        weight = batch.weight.repeat_interleave(answers)
        loss, logs = log_probs.new_zeros(()), {"entropy": self._logged(entropy, rollout, weight)}
        if self.trains_language_model:
            surrogate = clipped_objective(log_probs, rollout.log_probs, rollout.advantages[:, None], self.clip)
            loss = loss + self._mean(surrogate, rollout, weight)
            ratio = (log_probs.detach() - rollout.log_probs).exp()
            logs["ratio"] = self._logged(ratio, rollout, weight)
            if self.clip is not None:
                outside = (ratio < 1 - self.clip[0]) | (ratio > 1 + self.clip[1])
                logs["clipped"] = self._logged(outside.float(), rollout, weight)
            if rollout.reference is not None:
                kl = k3(log_probs, rollout.reference)
                loss = loss + self.kl_weight * self._mean(kl, rollout, weight)
                logs["kl"] = self._logged(kl, rollout, weight)
        if self.trains_pruner and actions:
            decisions = self._decision_loss(batch, rollout, actions)
            loss, logs["decisions"] = loss + self.pruner_weight * decisions, decisions
        return loss, {name: value.detach() for name, value in logs.items()}

    def _decision_loss(self, batch: Batch, rollout: Rollout, actions: list[Tensor]) -> Tensor:
        """Loss of the keep decisions: mean over a prefill's decisions of each stage, then over prefills; their sum."""
        assert rollout.worth is not None
        worth, prefills = rollout.worth, len(rollout.worth)
        weight = batch.weight.repeat_interleave(self.prefills)
        weight = weight / mean_over_ranks(weight.sum()).clamp(min=1e-9)
        losses = []
        for log_probs, old, sample in zip(actions, rollout.choice.log_probs, rollout.choice.sample, strict=True):
            mine = sample >= 0
            surrogate = clipped_objective(log_probs[mine], old[mine], worth[sample[mine]], self.clip)
            losses.append((segment_mean(surrogate, sample[mine], prefills) * weight).sum())
        return torch.stack(losses).sum()

    def _mean(self, values: Tensor, rollout: Rollout, weight: Tensor) -> Tensor:
        return reduce_tokens(values, rollout.mask, weight, self.mean, self.max_new_tokens)

    def _logged(self, values: Tensor, rollout: Rollout, weight: Tensor) -> Tensor:
        """The mean over tokens even where the loss divides by a constant: a ratio of 1 everywhere is logged as 1."""
        mean: Mean = "token" if self.mean == "constant" else self.mean
        return reduce_tokens(values, rollout.mask, weight, mean, self.max_new_tokens)

    # -- resuming -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Rollouts that are to be used again, and the price where it moves."""
        rollouts = {name: [visits, rollout.to_state()] for name, (visits, rollout) in self._rollouts.items()}
        state: dict[str, Any] = {"rollouts": rollouts} if rollouts else {}
        return state if self.retention is None else state | {"price": self.price}

    def load_state_dict(self, state: dict[str, Any], same_ranks: bool = True) -> None:
        if "price" in state and self.retention is not None:
            self.price = state["price"]
        if same_ranks:  # other ranks see other batches
            rollouts = state.get("rollouts", {}).items()
            self._rollouts = {name: (visits, Rollout.from_state(rollout)) for name, (visits, rollout) in rollouts}


def _check(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"Expected `{name}` to be at least 1, but got {value}.")
