"""PrunedVLM: a backbone and a pruner; prefill, generate, and the differentiable forwards used in training."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F
from transformers import GenerationConfig, GenerationMixin, StaticCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.backbones.fingerprint import fingerprint, same_weights
from glimpse_lightning.core.visual_tokens import VisionTap
from glimpse_lightning.data.batch import Batch
from glimpse_lightning.engine.compaction import fill_cache
from glimpse_lightning.engine.decoding import decode_step, step_after
from glimpse_lightning.engine.distillation import DistillOutput, StageOutput, distill, glimpse_forward
from glimpse_lightning.engine.forward import IGNORED, Parts, check_placeholders, logits_of
from glimpse_lightning.engine.generate_options import check_options
from glimpse_lightning.engine.keep_caches import keeps_caches
from glimpse_lightning.engine.prefill import PrefillOutput, run_prefill
from glimpse_lightning.engine.prompt import Prompt
from glimpse_lightning.engine.prompt_cache import PromptCache
from glimpse_lightning.engine.pruned_prompt import PrunedPrompt, pruned_prompt
from glimpse_lightning.engine.replay import ReplayOutput, replay
from glimpse_lightning.engine.request import PrefillRequest, Select
from glimpse_lightning.engine.shared_prefix import SharedPrefix
from glimpse_lightning.engine.trunk_memory import TrunkMemory
from glimpse_lightning.model.storage import remember
from glimpse_lightning.policies.base import Policy
from glimpse_lightning.pruner.pruner import Pruner
from glimpse_lightning.pruner.stage import PruneStage
from glimpse_lightning.runtime.errors import GlimpseError, nearest
from glimpse_lightning.runtime.ranks import running

CACHES = (None, "dynamic", "static")
"""Values of ``cache_implementation`` that ``generate`` takes."""


class PrunedVLM(nn.Module, GenerationMixin):
    """A vision-language model whose visual tokens are pruned on the way.

    The Hugging Face model stays unchanged and is shared, so several ``PrunedVLM`` over one backbone hold its weights
    once. Its gradient checkpointing, where that is on, is suspended during the methods of this class, because it would
    drop the caches.

    Args:
        backbone: the model, from ``gl.load_backbone`` or ``gl.wrap_backbone``.
        pruner: ``None`` gives the plain model, with Hugging Face's own outputs.

    Examples:
        >>> stage = gl.PruneStage(after_layer=1, scorer=gl.scorers.AttentionRank(), policy=gl.policies.KeepRatio(0.1))
        >>> model = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), gl.Pruner([stage]))
        >>> batch = model.backbone.collate([gl.GlyphVQA("test")[0]])
        >>> model.backbone.decode(model.generate(**batch.inputs, max_new_tokens=16))
        ['heart B']
    """

    main_input_name = "input_ids"
    _is_stateful = False
    _supports_cache_class = True
    _can_compile_fullgraph = False

    def __init__(self, backbone: Backbone, pruner: Pruner | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.model: Any = backbone.model
        self.pruner = pruner
        self.config = self.model.config
        self.generation_config: GenerationConfig = self.model.generation_config
        if pruner is not None:
            fresh = pruner.facts is None
            pruner.build(backbone.facts)
            _check_backbone(pruner, backbone)
            if self.device.type != "meta":
                pruner.to(self.device)
            if fresh:
                pruner.eval()  # as Hugging Face models start; after building, which makes modules that would drop out

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether ``forward`` reads ``num_items_in_batch``, which Hugging Face's Trainer asks; without a pruner,
        whether the Hugging Face model does.
        """
        return self.pruner is not None or bool(getattr(self.model, "accepts_loss_kwargs", True))

    def __getattr__(self, name: str) -> Any:
        """Attributes that ``generate`` reads beyond the mixin's are those of the Hugging Face model."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(self.model, name)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def run_first(self) -> None:
        """Do nothing. Sharding registers this method as a forward, so that FSDP2 meets the whole model first."""

    @property
    def sharded(self) -> bool:
        """Whether all ranks have to run the same layers equally often."""
        return running() and isinstance(self.backbone.layers[0], FSDPModule)

    @property
    def vision_layers(self) -> tuple[VisionTap, ...]:
        """States of the vision tower that some stage requires."""
        stages: list[PruneStage] = [] if self.pruner is None else self.pruner.stages
        return tuple(dict.fromkeys(layer for stage in stages for layer in stage.requires.vision_layers))

    @property
    def trains_embeddings(self) -> bool:
        """Whether the text embeddings are trained; then a prompt that was embedded before a step is out of date."""
        return bool(self.backbone.model.get_input_embeddings().weight.requires_grad)

    def embed(self, batch: Batch) -> Prompt:
        """The batch's prompts, embedded now unless they were embedded before.

        The vision tower is frozen, so it keeps no graph; the embedding of text may be trained.
        """
        if batch.prompt is not None:
            return batch.prompt
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_embeddings):
            return self.backbone.embed(batch.inputs, self.vision_layers, batch.vision_output)

    # -- prefill ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    @keeps_caches
    def prefill(
        self,
        *,
        prompt: Prompt | None = None,
        keys: Tensor | None = None,
        questions: Sequence[str] = (),
        boxes: Sequence[Any] = (),
        state: Mapping[str, Any] | None = None,
        select: Select | None = None,
        shared: SharedPrefix | TrunkMemory | None = None,
        copies: int = 1,
        retention: float | Sequence[float] | None = None,
        threshold: float | Sequence[float] | None = None,
        **inputs: Any,
    ) -> PrefillOutput:
        """Run a batch of prompts, pruning on the way.

        Args:
            prompt: the same inputs already embedded by ``backbone.embed`` with all ``vision_layers`` of this model, so
                that models compared on one batch share the vision tower's work.
            keys: ``[B]`` stable integer per sample, the seed of random scorers; by default drawn from its token ids.
            questions: raw questions, for scorers that read them.
            boxes: evidence boxes of each image, or ``None``, by sample; for oracles only.
            state: entries of ``VisualTokens.state`` as the first stage finds it, for scorers that read some, such as
                ``{"reference_masks": [...]}`` for VIP with ``masks="reference"``. Empty by default.
            select: function that chooses the kept tokens in place of the stages' policies, called with stage, scores
                ``[V]`` and tokens; by default the policies choose.
            shared: the common prefixes of prompts (or copies) that begin alike, which then run once, from
                ``SharedPrefix.of``, or one conversation's ``TrunkMemory``; by default each prompt runs whole.
            copies: number of runs of each prompt, in a row, for a ``select`` that draws.
            retention: share of the visual tokens to keep, in place of the policy's budget; of several stages a list. In
                place of a ``Threshold`` the tokens that score best.
            threshold: threshold of ``Threshold`` policies, likewise.
            **inputs: the processor's outputs: ``input_ids [B, N]``, ``attention_mask``, ``pixel_values``, ... Padding
                on either side.

        Raises:
            GlimpseError: for an unknown keyword, for ``state`` together with ``copies``, and where a policy has no such
                budget, or there is no pruner.
        """
        self._check_inputs(inputs, PrunedVLM.prefill)
        policies = self._policies(retention, threshold)
        inputs = {name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
        if prompt is None:
            prompt = self.backbone.embed(inputs, self.vision_layers)
        if state and copies > 1:
            raise GlimpseError("Expected either `state` or `copies`: a state is of prompts, not of their copies.")
        request = PrefillRequest(
            prompt, self._keys(keys, inputs), questions, boxes, state or {}, select, shared, policies, copies=copies
        )
        out = run_prefill(self.backbone, self.pruner, request)
        if "input_ids" in inputs:
            ids, plan = inputs["input_ids"], prompt.left_padding
            out.prompt_ids = ids if plan is None else plan.columns(ids, self._pad_id)
            out.prompt_mask = prompt.mask.long()
            if copies > 1:
                out.prompt_ids = out.prompt_ids.repeat_interleave(copies, 0)
                out.prompt_mask = out.prompt_mask.repeat_interleave(copies, 0)
        return out

    @torch.no_grad()
    def prune_prompt(
        self,
        *,
        keys: Tensor | None = None,
        questions: Sequence[str] = (),
        retention: float | Sequence[float] | None = None,
        threshold: float | Sequence[float] | None = None,
        **inputs: Any,
    ) -> PrunedPrompt:
        """Prompts as embeddings and positions without the dropped tokens, for another engine to go on from.

        Args:
            keys, questions, retention, threshold: the arguments of :meth:`prefill`.
            **inputs: the processor's outputs.

        Raises:
            GlimpseError: where there is no pruner, it prunes within the language model, or the model reads more of an
                image than embeddings and positions.
        """
        self._check_inputs(inputs, PrunedVLM.prune_prompt)
        if self.pruner is None:
            raise GlimpseError("Expected a pruner that prunes before the language model, but there is none.")
        policies = self._policies(retention, threshold)
        inputs = {name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
        prompt = self.backbone.embed(inputs, self.vision_layers)
        request = PrefillRequest(prompt, self._keys(keys, inputs), questions, policies=policies)
        return pruned_prompt(self.backbone, self.pruner, request)

    def _policies(self, retention: Any, threshold: Any) -> dict[PruneStage, Policy]:
        """Policies of one call, by the stage whose policy each replaces."""
        if retention is None and threshold is None:
            return {}
        if self.pruner is None:
            raise GlimpseError("Expected a pruner that `retention` or `threshold` could be set for, but there is none.")
        return self.pruner.with_budgets(retention, threshold)

    def _check_inputs(self, inputs: Mapping[str, Any], method: Callable[..., Any]) -> None:
        """Raise where a keyword is no input of the processor, since ``method`` would silently ignore it."""
        known = self.backbone.prompt_inputs
        for name in inputs:
            if name not in known:
                options = [*inspect.signature(method).parameters, *known]
                raise GlimpseError(
                    f"`{method.__name__}` does not know {name!r}: it is neither an option of its own nor an input of "
                    f"the processor.{nearest(name, sorted(options))} How much is kept, a stage's policy says, or "
                    "`retention`."
                )

    @property
    def _pad_id(self) -> int:
        pad = self.generation_config.pad_token_id
        return 0 if pad is None else pad

    def _keys(self, keys: Tensor | None, inputs: dict[str, Any]) -> Tensor:
        if keys is not None:
            return keys.to(self.device)
        if "input_ids" not in inputs:
            raise GlimpseError(
                "Expected `keys` or `input_ids` beside an embedded `prompt`: scorers' seeds come of them."
            )
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask
        weights = mask.long().cumsum(-1) * 1_000_003 % 2_147_483_647  # by place among the unpadded tokens
        return (ids * weights * mask).sum(-1) % 2_147_483_647

    # -- generation ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    @keeps_caches
    def generate(
        self,
        prefill: PrefillOutput | None = None,
        *,
        keys: Tensor | None = None,
        questions: Sequence[str] = (),
        state: Mapping[str, Any] | None = None,
        retention: float | Sequence[float] | None = None,
        threshold: float | Sequence[float] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Answer a batch of prompts with Hugging Face's ``generate``, continuing on the compacted cache.

        Args:
            prefill: a prefill to continue from; it stays reusable.
            keys, questions, state, retention, threshold: the arguments of :meth:`prefill`, which is called unless
                ``prefill`` is given.
            **kwargs: the processor's outputs (unless ``prefill`` is given) and any argument of ``generate``; with
                ``cache_implementation="static"`` decoding runs on fixed shapes, which ``torch.compile`` likes.

        Returns:
            ``LongTensor [B * num_return_sequences, new]``, or ``generate``'s dict output whose ``sequences`` have that
            shape. Unlike in Hugging Face's output, the prompt is always stripped.

        Raises:
            GlimpseError: for an argument that neither processor nor ``generate`` knows, for ``use_cache=False``, and
                for options that cannot work on a pruned prompt, such as assisted decoding or ``output_attentions``.
        """
        if not (prefill is None or isinstance(prefill, PrefillOutput)):
            raise GlimpseError(
                f"Expected `prefill` to be what `prefill(...)` returned, but got a {type(prefill).__name__}. Pass the "
                "prompt by name: `generate(**inputs)`, or `generate(input_ids=..., attention_mask=..., ...)`."
            )
        if kwargs.pop("use_cache", None) is False:
            raise GlimpseError(
                "Expected `generate` with a cache, but got `use_cache=False`. Without the cache decoding would forget "
                "what was pruned where; leave the argument out."
            )
        check_options(kwargs, kwargs.get("generation_config"), self.generation_config)
        if kwargs.get("generation_config") is None:
            kwargs["use_cache"] = True  # as an argument it overrules configurations saved while training
        else:  # `generate` takes no further options next to a configuration
            kwargs["generation_config"] = config = copy.deepcopy(kwargs["generation_config"])
            config.use_cache = True
        inputs = {name: kwargs.pop(name) for name in list(kwargs) if name in self.backbone.prompt_inputs}
        asked = {"keys": keys, "questions": questions or None, "state": state or None, **inputs}
        asked |= {"retention": retention, "threshold": threshold}
        if prefill is not None and (unread := [name for name, value in asked.items() if value is not None]):
            raise GlimpseError(
                f"Expected a prompt or a `prefill` of one, but got both: {', '.join(unread)} would not be read. Leave "
                "out either."
            )
        if prefill is None:
            prefill = self.prefill(
                keys=keys, questions=questions, state=state, retention=retention, threshold=threshold, **inputs
            )
        ids, mask = prefill.prompt_ids, prefill.prompt_mask
        if ids is None:  # logits processors that look at the prompt then see padding only
            ids = torch.full((len(prefill.logits), 1), self._pad_id, device=self.device)
            mask = torch.ones_like(ids)
        if self.sharded:  # Hugging Face does not recognise this class as sharded
            kwargs.setdefault("synced_gpus", True)
        out = super().generate(input_ids=ids, attention_mask=mask, prefill=prefill, **kwargs)
        if isinstance(out, Tensor):
            return out[:, ids.shape[1] :]
        out.sequences = out.sequences[:, ids.shape[1] :]
        return out

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        prefill: PrefillOutput | None = None,
        labels: Tensor | None = None,
        prompt_length: int | Tensor | None = None,
        keys: Tensor | None = None,
        questions: Sequence[str] = (),
        num_items_in_batch: Tensor | int | None = None,
        **inputs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and a loss, as of a Hugging Face model, where the prompt's visual tokens are pruned.

        Tokens after the prompt are predicted on the pruned keys and values, as in decoding. Which tokens are kept
        depends on the prompt alone: on the tokens before ``prompt_length``, or before the first label, so that another
        continuation never changes it. Without either, all of the input is the prompt. Without a pruner this is the
        Hugging Face model's own forward.

        Args:
            input_ids: ``[B, N]`` prompts and their continuations; padding on either side.
            attention_mask: ``[B, N]`` 0 at padding.
            position_ids, past_key_values, prefill: arguments that ``generate`` passes at each of its steps.
            labels: ``[B, N]`` tokens to predict; -100, as in Hugging Face, where no loss is wanted, as in the prompt.
            prompt_length: tokens of each prompt, padding not counted; one number, or ``[B]``.
            keys, questions: the arguments of :meth:`prefill`.
            num_items_in_batch: divisor of the loss, which Trainer passes; by default the number of labels.
            **inputs: the processor's other outputs.

        Returns:
            ``loss`` where there are labels, and ``logits [B, N, vocab]``: NaN at padding and at tokens that were
            dropped. Gradients reach the language model through the continuation, and no pruner: decisions are hard.

        Raises:
            GlimpseError: for an unknown keyword, and where an image or no prompt at all stands before the first label.
        """
        if prefill is not None:
            cache = prefill.cache
            if isinstance(past_key_values, StaticCache):
                if not cache.even:
                    raise GlimpseError(
                        "A static cache holds the same columns in every layer, but some stage keeps the early layers' "
                        "KV (`early_kv: keep`); leave `cache_implementation` out."
                    )
                cache = fill_cache(past_key_values, cache)
            first = CausalLMOutputWithPast(logits=prefill.logits[:, None], past_key_values=cache)
            drafted = input_ids[:, self._prompt_width(prefill) :] if input_ids is not None else None
            if drafted is None or drafted.shape[1] == 0:
                return first
            more = step_after(self.backbone, prefill, drafted, cache)
            both = torch.cat([first.logits, more.logits], 1)
            return CausalLMOutputWithPast(logits=both, past_key_values=more.past_key_values)
        if past_key_values is not None:
            if isinstance(past_key_values, PromptCache) and input_ids is not None and attention_mask is not None:
                # Where tokens are drafted, for one prompt, transformers makes masks as long as its token ids: those of
                # the unpruned prompt, or none for an embedded one.
                held = past_key_values.layers[-1].get_seq_length() + input_ids.shape[1]
                attention_mask = F.pad(attention_mask, (0, held - attention_mask.shape[1]), value=1)
            return decode_step(
                self.backbone,
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=True,
                return_dict=True,
            )
        for name in ("use_cache", "return_dict"):  # callers of Hugging Face models pass them
            inputs.pop(name, None)
        whole = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        whole = {name: value for name, value in whole.items() if value is not None}
        self._check_inputs(whole, PrunedVLM.forward)
        whole = {name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in whole.items()}
        labels = None if labels is None else labels.to(self.device)
        if self.pruner is None:
            more = {} if labels is None else {"labels": labels, "num_items_in_batch": num_items_in_batch}
            return self.model(**self.backbone.hf_inputs(whole), **more, use_cache=False)
        return self._forward(whole, labels, prompt_length, keys, questions, num_items_in_batch)

    @keeps_caches
    def _forward(
        self,
        inputs: dict[str, Any],
        labels: Tensor | None,
        prompt_length: int | Tensor | None,
        keys: Tensor | None,
        questions: Sequence[str],
        num_items_in_batch: Tensor | int | None,
    ) -> CausalLMOutputWithPast:
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask")
        parts = Parts.of(torch.ones_like(ids) if mask is None else mask, labels, prompt_length)
        check_placeholders(self.backbone.visual_token_ids, ids, parts)
        prompts = parts.prompts(inputs, self._pad_id)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_embeddings):
            prompt = self.backbone.embed(prompts, self.vision_layers)
        request = PrefillRequest(prompt, self._keys(keys, prompts), questions, with_hidden=True)
        out = run_prefill(self.backbone, self.pruner, request)
        logits, predicted = logits_of(self.backbone, out, parts, ids)
        loss = None
        if labels is not None:
            wanted = labels.gather(1, parts.rest).masked_fill(~parts.rest_mask, IGNORED)
            more = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
            more |= {"shift_labels": wanted, "vocab_size": predicted.shape[-1]}
            loss = self.model.loss_function(logits=predicted[:, :-1].contiguous(), labels=None, **more)
        return CausalLMOutputWithPast(loss=loss, logits=logits)

    # -- saving ---------------------------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write the pruner and its model card, for ``gl.load_pruner``, with the backbone's name and fingerprint; the
        backbone, which is shared and unchanged, is not written.

        Args:
            save_directory: a folder that is new, empty, or holds a saved pruner.
            **options: arguments of :meth:`gl.Pruner.save_pretrained`.

        Raises:
            GlimpseError: where there is no pruner, or as :meth:`gl.Pruner.save_pretrained` does.
        """
        return self._own_pruner().save_pretrained(save_directory, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the pruner to a repository on the Hub, which is created where there is none; returns its address.

        Args:
            repo_id: ``user/name``.
            **options: arguments of :meth:`gl.Pruner.push_to_hub`, such as ``private``.
        """
        return self._own_pruner().push_to_hub(repo_id, **options)

    def _own_pruner(self) -> Pruner:
        """The pruner, with a note of the model that it belongs to."""
        if self.pruner is None:
            raise GlimpseError(
                "This model has no pruner to save. Save the Hugging Face model itself with "
                "`backbone.model.save_pretrained(folder)`."
            )
        remember(self.pruner, self.backbone)
        return self.pruner

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        prefill = kwargs.pop("prefill", None)
        if prefill is not None:
            return {"input_ids": input_ids, "prefill": prefill, "past_key_values": kwargs.get("past_key_values")}
        return super().prepare_inputs_for_generation(input_ids, **kwargs)

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], generation_mode: Any, batch_size: int, length: int
    ) -> None:
        """Give a static cache room for the pruned prompt, not for all of it."""
        kind = generation_config.cache_implementation
        if kind not in CACHES:
            raise GlimpseError(
                f"Expected `cache_implementation` to be one of {', '.join(map(str, CACHES))}, but got {kind!r}, which "
                "does not take over a pruned prompt's keys and values."
            )
        prefill: PrefillOutput = model_kwargs["prefill"]
        length -= self._prompt_width(prefill) - prefill.attention_mask.shape[1]
        super()._prepare_cache_for_generation(generation_config, model_kwargs, generation_mode, batch_size, length)

    @staticmethod
    def _prompt_width(prefill: PrefillOutput) -> int:
        """Number of columns that ``generate`` counts as the prompt."""
        return 1 if prefill.prompt_ids is None else prefill.prompt_ids.shape[1]

    def _expand_inputs_for_generation(self, expand_size: int = 1, **kwargs: Any) -> Any:
        prefill: PrefillOutput = kwargs.pop("prefill")  # stays unchanged: decoding appends to a fork
        ids, model_kwargs = super()._expand_inputs_for_generation(expand_size=expand_size, **kwargs)
        model_kwargs["prefill"] = prefill.fork(expand_size)
        return ids, model_kwargs

    def _update_model_kwargs_for_generation(self, outputs: Any, model_kwargs: dict[str, Any], **kwargs: Any) -> Any:
        prefill: PrefillOutput | None = model_kwargs.pop("prefill", None)
        if prefill is not None:  # from here on generation continues on the compacted prompt
            model_kwargs["attention_mask"] = prefill.attention_mask
            model_kwargs["position_ids"] = prefill.position_ids
        return super()._update_model_kwargs_for_generation(outputs, model_kwargs, **kwargs)

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        known = {"input_ids", "prefill", "attention_mask", "use_cache", "synced_gpus"}
        unknown = sorted(set(model_kwargs) - known)
        if unknown:
            raise GlimpseError(
                f"`generate` does not know {unknown}: neither an input of the processor nor a generation option."
            )

    # -- training -----------------------------------------------------------------------------------------------

    @keeps_caches
    def glimpse_forward(self, batch: Any, answers: bool = False) -> list[StageOutput]:
        """Differentiable scores of every stage; see :func:`glimpse_lightning.engine.distillation.glimpse_forward`."""
        with torch.no_grad():
            prompt = self.embed(batch)
        return glimpse_forward(self.backbone, self.pruner, prompt, batch, answers)

    @keeps_caches
    def replay(
        self, batch: Any, ids: Tensor, mask: Tensor, from_embeddings: bool = False, **options: Any
    ) -> ReplayOutput:
        """Differentiable predictions of answers after a pruned prompt; see :func:`~.engine.replay.replay`.

        Args:
            **options: further attributes of the :class:`~.engine.request.PrefillRequest`, such as ``select``.
        """
        request = PrefillRequest.of(self.embed(batch), batch, **options)
        return replay(self.backbone, self.pruner, request, ids, mask, from_embeddings)

    @keeps_caches
    def distill(self, batch: Any, gate: Any) -> DistillOutput:
        """Full and softly pruned answers; see :func:`glimpse_lightning.engine.distillation.distill`."""
        with torch.no_grad():
            prompt = self.embed(batch)
        return distill(self.backbone, self.pruner, prompt, batch, gate)


def _check_backbone(pruner: Pruner, backbone: Backbone) -> None:
    """Raise where a saved pruner was trained on other weights than the backbone's, and warn of other pixels."""
    trained_on = pruner.trained_on
    if trained_on is None:
        return
    if not same_weights(trained_on["weights"], fingerprint(backbone), backbone.model.dtype):
        raise GlimpseError(
            f"The pruner in {pruner.source} was trained on {trained_on['backbone']}, but this backbone, "
            f"{backbone.name}, has the same shape and other weights: what it scores would mean nothing. Load the "
            "backbone that it was trained on, or train a pruner for this one; to use it all the same: "
            "`load_pruner(..., any_backbone=True)`, or `model.any_backbone: true`."
        )
    trained_with, now = trained_on.get("image_processor", {}), backbone.described()["image_processor"]
    if differing := sorted(key for key in trained_with.keys() & now.keys() if trained_with[key] != now[key]):
        rank_zero_warn(
            f"The pruner in {pruner.source} was trained with other settings of the image processor: "
            f"{'; '.join(f'{key} {trained_with[key]}, now {now[key]}' for key in differing)}. To see images as it did "
            "then, load the backbone with those settings."
        )
