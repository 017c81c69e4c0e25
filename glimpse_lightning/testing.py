"""The conformance kit: properties that every backbone must have, for this package's tests and authors of adapters.

``check_backbone(hf_model)`` makes its own tensor batches, so it needs neither processor nor hub. It raises an
``AssertionError`` that names the first property that does not hold. Models should be small, in float32, on any device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.backbones.load import wrap_backbone
from glimpse_lightning.data.batch import Batch
from glimpse_lightning.engine import taps
from glimpse_lightning.engine.forward import IGNORED
from glimpse_lightning.engine.keep_caches import caches_kept
from glimpse_lightning.engine.prefill import PrefillOutput
from glimpse_lightning.evaluation.evaluator import answer_log_probs
from glimpse_lightning.model.pruned_vlm import PrunedVLM
from glimpse_lightning.policies import KeepRatio
from glimpse_lightning.pruner.pruner import Pruner
from glimpse_lightning.pruner.stage import PruneStage
from glimpse_lightning.scorers import VIP, AttentionRank, Random

Sizes = list[list[tuple[int, int]]]
"""(height, width) in visual tokens of each image, by sample."""

SIZES: Sizes = [[(3, 4)], [(2, 3), (5, 2)], [], [(4, 4)]]
TOLERANCE = 1e-4


def check_backbone(model: PreTrainedModel, processor: Any | None = None) -> None:
    """Run every conformance check over ``model``.

    Args:
        model: supported Hugging Face model, in float32 and evaluation mode.
        processor: processor of the backbone; not needed.

    Raises:
        AssertionError: if a property does not hold; the message names it.
    """
    for check in CHECKS:
        check(wrap_backbone(model, processor))


def pruners(backbone: Backbone) -> Iterator[tuple[str, Pruner]]:
    """Small pruners that together use every hook of the engine, by name."""
    middle = len(backbone.layers) // 2
    vision = (backbone.facts.vision_layers - 1, 0)
    vip: dict[str, Any] = {"vision_layers": vision, "attention_dim": 16, "condition_dim": 16, "heads": 2}
    makers: dict[str, Callable[[], list[PruneStage]]] = {
        "random before layer 0": lambda: [PruneStage(-1, Random(), KeepRatio(0.5))],
        "attention rank": lambda: [PruneStage(middle, AttentionRank(), KeepRatio(0.4))],
        "vip": lambda: [PruneStage(middle, VIP(**vip), KeepRatio(0.4))],
        "three stages": lambda: [
            PruneStage(-1, Random(), KeepRatio(0.8)),
            PruneStage(0, AttentionRank(), KeepRatio(0.6)),
            PruneStage(middle, VIP(**vip), KeepRatio(0.3)),
        ],
        "early KV kept": lambda: [
            PruneStage(0, AttentionRank(), KeepRatio(0.6), early_kv="keep"),
            PruneStage(middle, VIP(**vip), KeepRatio(0.3), early_kv="keep"),
        ],
        "early KV kept, then pruned": lambda: [
            PruneStage(0, AttentionRank(), KeepRatio(0.7), early_kv="keep"),
            PruneStage(1, AttentionRank(), KeepRatio(0.5)),
            PruneStage(middle, AttentionRank(), KeepRatio(0.2), early_kv="keep"),
        ],
        "positions renumbered": lambda: [
            PruneStage(-1, Random(), KeepRatio(0.8), positions="renumber"),
            PruneStage(0, AttentionRank(), KeepRatio(0.5), early_kv="keep", positions="renumber"),
            PruneStage(middle, VIP(**vip), KeepRatio(0.3), positions="renumber"),
        ],
        "cache only": lambda: [PruneStage(len(backbone.layers) + 5, AttentionRank(layer=middle), KeepRatio(0.4))],
        "cache only, renumbered": lambda: [
            PruneStage(len(backbone.layers) - 1, Random(), KeepRatio(0.4), positions="renumber")
        ],
    }
    for name, make in makers.items():
        torch.manual_seed(0)
        pruner = Pruner(make())
        pruner.build(backbone.facts)
        yield name, pruner.eval()


# -- checks ------------------------------------------------------------------------------------------------------


def check_plain_equals_hf(backbone: Backbone) -> None:
    """``pruner=None`` and keep-all give Hugging Face's own logits and greedy tokens."""
    inputs = backbone.example_inputs(SIZES)
    expected = _hf_logits(backbone, inputs)
    expected_ids = _hf_generate(backbone, inputs)
    middle = len(backbone.layers) // 2
    keep_all = Pruner([PruneStage(middle, AttentionRank(), KeepRatio(1.0))])
    uneven = Pruner([PruneStage(middle, AttentionRank(), KeepRatio(1.0), early_kv="keep", positions="renumber")])
    for name, pruner in (("pruner=None", None), ("keep-all", keep_all), ("keep-all, layer by layer", uneven)):
        model = PrunedVLM(backbone, pruner)
        out = model.prefill(**inputs)
        _assert_close(out.logits, expected, f"{name}: prefill logits differ from Hugging Face's")
        ids = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6)
        assert torch.equal(ids, expected_ids), f"{name}: greedy tokens differ from Hugging Face's"
        assert torch.equal(out.prompt_keep, inputs["attention_mask"].bool()), f"{name}: a token was dropped"


def check_batch_independence(backbone: Backbone) -> None:
    """Results for a sample alone equal those for the sample in a batch, padded on either side."""
    keys = torch.arange(10, 10 + len(SIZES))
    for name, pruner in pruners(backbone):
        model = PrunedVLM(backbone, pruner)
        left = backbone.example_inputs(SIZES)
        right = _one_column_more(backbone.example_inputs(SIZES, padding_side="right"))
        batch, mirrored = model.prefill(keys=keys, **left), model.prefill(keys=keys, **right)
        _assert_same_prompt_keep(name, batch, left, mirrored, right)
        for index, sizes in enumerate(SIZES):
            alone = backbone.example_inputs([sizes], first_sample=index)
            single = model.prefill(keys=keys[index : index + 1], **alone)
            for side, out in (("left", batch), ("right", mirrored)):
                what = f"{name}: sample {index} in a {side}-padded batch"
                _assert_close(out.logits[index], single.logits[0], f"{what}: logits depend on batch mates")
                for stage, keep in enumerate(out.keep):
                    mine = out.tokens.sample == index
                    assert torch.equal(keep[mine], single.keep[stage]), f"{what}: kept tokens depend on batch mates"
        together = model.generate(prefill=batch, max_new_tokens=4, min_new_tokens=4)
        row = model.generate(prefill=single, max_new_tokens=4, min_new_tokens=4)
        assert torch.equal(together[-1:], row), f"{name}: greedy tokens depend on batch mates"


def check_decoding_equals_recomputation(backbone: Backbone) -> None:
    """Decoding on the compacted cache equals a forward without cache, with the dropped tokens masked out."""
    inputs = backbone.example_inputs(SIZES)
    for name, pruner in pruners(backbone):
        model = PrunedVLM(backbone, pruner)
        out = model.prefill(**inputs)
        generated = model.generate(
            prefill=out, max_new_tokens=5, min_new_tokens=5, output_logits=True, return_dict_in_generate=True
        )
        logits = torch.stack(list(generated.logits), 1)
        expected = recompute_logits(backbone, pruner, inputs, out, generated.sequences[:, :-1])
        _assert_close(logits, expected, f"{name}: cached decoding differs from recomputation")


def check_positions(backbone: Backbone) -> None:
    """Only visual tokens are dropped; each layer's cache holds the expected tokens, at the expected positions."""
    inputs = backbone.example_inputs(SIZES)
    prompt = backbone.embed(inputs)
    for name, pruner in pruners(backbone):
        out = PrunedVLM(backbone, pruner).prefill(**inputs)
        for row in range(len(SIZES)):
            kept = out.prompt_keep[row]
            dropped = prompt.mask[row] & ~kept
            assert not (dropped & ~prompt.visual[row]).any(), f"{name}: a text token was dropped"
            positions = out.position_ids[..., row, :][..., out.attention_mask[row].bool()]
            expected = _numbering(prompt, pruner, out.keep, len(backbone.layers) - 1)[..., row, :][..., kept]
            assert torch.equal(positions, expected), f"{name}: positions are not those of its policy"
        for index, layer in enumerate(out.cache.layers):
            length = int(_visible(prompt, _missing(pruner, out.keep, index), prompt.mask.shape[1]).sum(1).max())
            assert layer.keys.shape[2] == length, f"{name}: layer {index} caches other columns than it should"


def check_gradients(backbone: Backbone) -> None:
    """The differentiable forwards reach every parameter of the pruner, and none of the model's."""
    inputs = backbone.example_inputs(SIZES)
    ids = torch.randint(0, 8, (len(SIZES), 3), generator=torch.Generator().manual_seed(0)).to(backbone.model.device)
    batch = _batch(inputs, ids)
    requires_grad = {name: p.requires_grad for name, p in backbone.model.named_parameters()}
    backbone.model.requires_grad_(False)
    for name, pruner in pruners(backbone):
        if not list(pruner.parameters()) or any(stage.positions == "renumber" for stage in pruner.stages):
            continue  # no parameters, or an option that training refuses
        out = PrunedVLM(backbone, pruner).distill(batch, lambda scores, _: torch.nn.functional.logsigmoid(scores))
        (out.teacher_logits - out.student_logits).square().mean().backward()
        glimpse_layers = pruner.stages[-1].after_layer + 1  # vectors of later layers are used in answers only
        for parameter, value in pruner.named_parameters():
            assert value.grad is not None, f"{name}: no gradient reaches {parameter}"
            grad = value.grad[:glimpse_layers] if parameter.endswith("glimpse.embeddings") else value.grad
            assert grad.abs().sum() > 0, f"{name}: the gradient of {parameter} is zero"
    for name, parameter in backbone.model.named_parameters():
        assert parameter.grad is None, f"a gradient reached the frozen {name}"
        parameter.requires_grad_(requires_grad[name])


def check_closed_gates_equal_pruning(backbone: Backbone) -> None:
    """The training forward with fully open or closed gates gives the predictions of decoding on the pruned cache."""
    inputs = backbone.example_inputs(SIZES)
    for name, pruner in pruners(backbone):
        if any(stage.after_layer >= len(backbone.layers) - 1 for stage in pruner.stages):
            continue
        if any(stage.positions == "renumber" for stage in pruner.stages):  # training refuses these
            continue
        model = PrunedVLM(backbone, pruner)
        keys = torch.arange(len(SIZES), device=backbone.model.device)
        out = model.prefill(keys=keys, **inputs)
        generated = model.generate(
            prefill=out, max_new_tokens=4, min_new_tokens=4, output_logits=True, return_dict_in_generate=True
        )
        ids = generated.sequences
        batch = _batch(inputs, ids)
        windows = any(backbone.window(layer) is not None for layer in range(len(backbone.layers)))
        # A gate of 0 removes tokens. A gate near 0 leaves them in windows, so it is not tested there.
        for closed in (-torch.inf,) if windows else (-torch.inf, -1e4):
            waiting = iter([torch.where(keep, 0.0, closed) for keep in out.keep])
            with torch.no_grad():
                student = model.distill(batch, lambda *_, waiting=waiting: next(waiting)).student_logits
            _assert_close(student, torch.stack(list(generated.logits), 1), f"{name}: closed gates differ from pruning")


def check_forward(backbone: Backbone) -> None:
    """``model(**inputs, labels=...)`` equals Hugging Face's with keep-all. With pruning it equals prefill and
    teacher-forced decoding, and the tokens after the prompt do not change the kept ones.
    """
    batch, device = len(SIZES), backbone.model.device
    more = torch.arange(20, 20 + 3 * batch, device=device).view(batch, 3)
    for side in ("left", "right"):
        prompts = backbone.example_inputs(SIZES, padding_side=side)
        inputs, labels, places = _continued(prompts, more)
        with torch.no_grad():
            want = backbone.model(**backbone.hf_inputs(inputs), labels=labels, use_cache=False)
            middle = len(backbone.layers) // 2
            keep_all = Pruner([PruneStage(middle, AttentionRank(), KeepRatio(1.0))])
            for name, pruner in (("pruner=None", None), ("keep-all", keep_all)):
                got = PrunedVLM(backbone, pruner)(**inputs, labels=labels)
                real = inputs["attention_mask"].bool()
                what = f"{name}: forward of a {side}-padded batch"
                _assert_close(got.logits[real], want.logits[real], f"{what}: logits differ from Hugging Face's")
                _assert_close(got.loss, want.loss, f"{what}: the loss differs from Hugging Face's")
    rows = torch.arange(batch, device=device)[:, None]
    for name, pruner in pruners(backbone):
        model = PrunedVLM(backbone, pruner)
        keys = torch.arange(batch, device=device)
        with torch.no_grad():
            got = model(**inputs, labels=labels, keys=keys)
            others = {**inputs, "input_ids": inputs["input_ids"].scatter(1, places, more.flip(0))}
            other = model(**others, labels=labels, keys=keys)
            out = model.prefill(keys=keys, **prompts)
            batched = _batch(prompts, torch.cat([more, more[:, :1]], 1))
            with caches_kept(backbone):
                decoded = answer_log_probs(model, out, batched)
        last = places[:, :1] - 1
        mine = got.logits[rows, torch.cat([last, places], 1)].float().log_softmax(-1)
        _assert_close(mine, decoded, f"{name}: forward differs from prefill and teacher-forced decoding")
        dropped = got.logits.isnan().all(-1)
        assert torch.equal(dropped, other.logits.isnan().all(-1)), f"{name}: the continuation changes what is kept"
        kept = out.prompt_keep.sum() + more.numel()
        assert int((~dropped).sum()) == int(kept), f"{name}: NaN stands elsewhere than at dropped tokens and padding"
        assert bool(got.loss.isfinite()), f"{name}: the loss is not finite"


def _continued(prompts: dict[str, Tensor], more: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Prompts with ``more [B, A]`` appended, labels of these tokens, and their columns ``[B, A]``."""
    ids, mask = prompts["input_ids"], prompts["attention_mask"]
    ends = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(1, keepdim=True)
    places = ends + torch.arange(more.shape[1], device=ids.device)
    wide = {
        name: F.pad(value, (0, more.shape[1])) if value.shape == ids.shape else value for name, value in prompts.items()
    }
    wide["input_ids"] = wide["input_ids"].scatter(1, places, more)
    wide["attention_mask"] = wide["attention_mask"].scatter(1, places, 1)
    labels = torch.full_like(wide["input_ids"], IGNORED).scatter(1, places, more)
    return wide, labels, places


def check_untouched(backbone: Backbone) -> None:
    """No module of the model was replaced, and removing the attention wrapper restores the registry."""
    inputs = backbone.example_inputs(SIZES)
    _hf_logits(backbone, inputs)  # some models register hooks in their first forward
    classes = [type(module) for module in backbone.model.modules()]
    hooks = [len(module._forward_hooks) for module in backbone.model.modules()]
    model = PrunedVLM(backbone, next(iter(pruners(backbone)))[1])
    model.prefill(**inputs)
    assert classes == [type(module) for module in backbone.model.modules()], "a module was replaced"
    assert hooks == [len(module._forward_hooks) for module in backbone.model.modules()], "a hook was left behind"
    config, name = backbone.text_config, backbone.text_config._attn_implementation
    backbone.unwrap()
    untapped = config._attn_implementation
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    left = untapped in ALL_ATTENTION_FUNCTIONS and hasattr(ALL_ATTENTION_FUNCTIONS[untapped], "untapped")
    taps.install(config)
    assert not left and untapped != taps.TAPPED_EAGER, "the attention wrapper could not be removed"
    assert config._attn_implementation == name, "the attention wrapper could not be put back"


CHECKS: tuple[Callable[[Backbone], None], ...] = (
    check_plain_equals_hf,
    check_batch_independence,
    check_decoding_equals_recomputation,
    check_positions,
    check_gradients,
    check_closed_gates_equal_pruning,
    check_forward,
    check_untouched,
)


# -- the slow, plain way -------------------------------------------------------------------------------------------


@torch.no_grad()
def recompute_logits(
    backbone: Backbone, pruner: Pruner, inputs: dict[str, Tensor], out: PrefillOutput, new_ids: Tensor
) -> Tensor:
    """Logits ``[B, 1 + A, vocab]`` after the prompt and after each of ``new_ids [B, A]``, with no cache and no
    compaction: every token stays in place, and dropped ones are masked out of attention.

    Dropped tokens are masked out for prompt tokens from the layer after the stage on. For new tokens they are masked
    out in every layer, except in layers up to a stage that keeps their keys and values. Positions are those of each
    layer's numbering. A sliding window counts the tokens that are not masked out.
    """
    prompt = backbone.embed(inputs)
    batch, length = prompt.mask.shape
    embeds = torch.cat([prompt.embeds, backbone.model.get_input_embeddings()(new_ids)], 1)
    total = embeds.shape[1]
    steps = torch.arange(1, total - length + 1, device=embeds.device)
    causal = torch.ones(total, total, dtype=torch.bool, device=embeds.device).tril()
    new = torch.arange(total, device=embeds.device) >= length
    hidden = embeds
    if backbone.bidirectional_images:
        image = torch.full((batch, total), -1, device=embeds.device)
        image[:, :length][prompt.visual] = out.tokens.item
        causal = causal | (image[:, None] == image[..., None]) & (image >= 0)[:, None]
    for layer in range(len(backbone.layers)):
        numbers = _numbering(prompt, pruner, out.keep, layer)
        positions = backbone.position_embeddings(hidden, torch.cat([numbers, numbers[..., -1:] + steps], -1))
        gone = [keep for stage, keep in zip(pruner.stages, out.keep, strict=True) if stage.after_layer < layer]
        cached = _visible(prompt, _missing(pruner, out.keep, layer), total)
        seen = torch.where(new[None, :, None], cached[:, None], _visible(prompt, gone, total)[:, None])
        window = backbone.window(layer)
        if window is not None:  # it counts the columns that a row sees
            number = seen.long().cumsum(-1)
            seen = seen & (number > number.diagonal(dim1=1, dim2=2)[..., None] - window)
        allowed = causal & seen | torch.eye(total, dtype=torch.bool, device=embeds.device)
        mask = torch.zeros(batch, 1, total, total, device=embeds.device, dtype=embeds.dtype)
        mask.masked_fill_(~allowed[:, None], torch.finfo(embeds.dtype).min)
        hidden = backbone.run_layer(layer, hidden, mask, positions, None, None)
        if layer in prompt.layer_features:
            hidden[:, :length][prompt.visual] += prompt.layer_features[layer]
    return backbone.logits(hidden[:, length - 1 :])


def _batch(inputs: dict[str, Tensor], ids: Tensor) -> Batch:
    """Prompts with answers, on the device of the prompts."""
    keys = torch.arange(len(ids), device=ids.device)
    return Batch(inputs, ids, torch.ones_like(ids), keys, torch.ones(len(ids), device=ids.device), [])


def _missing(pruner: Pruner, keeps: list[Tensor], layer: int) -> list[Tensor]:
    """The masks in ``keeps`` (one per stage) that hide tokens from new tokens in ``layer``."""
    stages = pruner.stages
    return [
        keep
        for index, keep in enumerate(keeps)
        if stages[index].after_layer < layer or any(later.early_kv == "prune" for later in stages[index:])
    ]


def _numbering(prompt: Any, pruner: Pruner, keeps: list[Tensor], layer: int) -> Tensor:
    """``[..., B, N]`` positions of the prompt in ``layer``, closing gaps one by one; numbers at dropped columns have no
    meaning.
    """
    numbers, length = prompt.position_ids.clone(), prompt.mask.shape[1]
    for index, stage in enumerate(pruner.stages):
        if stage.after_layer >= layer or stage.positions == "keep":
            continue
        before, after = (_visible(prompt, keeps[:count], length) for count in (index, index + 1))
        for row in range(len(before)):
            mine = numbers[..., row, :]
            for position in reversed(range(int(mine.max()) + 1)):
                if bool((mine[..., before[row]] == position).any() and not (mine[..., after[row]] == position).any()):
                    mine -= (mine > position).long()
    return numbers


def _visible(prompt: Any, keeps: list[Tensor], total: int) -> Tensor:
    """``[B, total]`` columns that are neither padding nor dropped by any of ``keeps``."""
    visible = prompt.mask.clone()
    for keep in keeps:
        visible[prompt.visual] &= keep
    return torch.cat([visible, visible.new_ones(len(visible), total - visible.shape[1])], 1)


def _assert_same_prompt_keep(
    name: str, left: PrefillOutput, left_inputs: dict[str, Any], right: PrefillOutput, right_inputs: dict[str, Any]
) -> None:
    kept = []
    for out, inputs in ((left, left_inputs), (right, right_inputs)):
        mask = inputs["attention_mask"].bool()
        assert out.prompt_keep.shape == mask.shape, f"{name}: `prompt_keep` is not in the caller's layout"
        kept.append(out.prompt_keep[mask])
    assert torch.equal(*kept), f"{name}: `prompt_keep` depends on the padding side"


def _one_column_more(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same prompts, all of them padded on the right, as processors do up to a fixed length."""
    columns = inputs["input_ids"].shape
    return {name: F.pad(value, (0, 1)) if value.shape == columns else value for name, value in inputs.items()}


@torch.no_grad()
def _hf_logits(backbone: Backbone, inputs: dict[str, Tensor]) -> Tensor:
    out = backbone.model(**backbone.hf_inputs(inputs), logits_to_keep=1)
    return out.logits[:, -1]


def _hf_generate(backbone: Backbone, inputs: dict[str, Tensor]) -> Tensor:
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    with caches_kept(backbone):  # else it would decode without the prompt
        ids = backbone.model.generate(**backbone.hf_inputs(inputs), **options)
    return ids[:, inputs["input_ids"].shape[1] :]


def _assert_close(actual: Tensor, expected: Tensor, message: str) -> None:
    difference = (actual - expected).abs().max().item()
    assert difference <= TOLERANCE, f"{message} (largest difference {difference:.2e}, allowed {TOLERANCE:.0e})"
