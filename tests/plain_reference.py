"""The reference's model for one sample, written a second time from its description: full maps, loops, no cache.

Reads the reference's own files (``config.json`` fields, ``new_modules_gp.pt`` names) and shares with the product only
what Hugging Face's model computes: embedded prompt, vision states, decoder layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.activations import ACT2FN

import glimpse_lightning as gl

Config = dict[str, Any]


@dataclass
class PlainOutput:
    """Of one sample: every output row ``[rows, N]``, kept image tokens ``[N]``, kept columns, logits ``[vocab]``."""

    rows: Tensor
    keep: Tensor
    columns: Tensor
    logits: Tensor


def new_modules(config: Config, vision_dim: int) -> Config:
    """Random contents of ``new_modules_gp.pt`` for ``config``: names and shapes of algorithm.md section 7."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        fan = shape[-1] if len(shape) > 1 else 100
        return torch.randn(*shape, generator=generator) / math.sqrt(fan)

    def linear(name: str, out: int, into: int, bias: bool = True) -> dict[str, Tensor]:
        return {f"{name}.weight": draw(out, into)} | ({f"{name}.bias": draw(out)} if bias else {})

    d, c, hidden = config["attn_fuse_size"], config["visual_cond_size"], config["hidden_size"]
    count = len(config["selected_visual_layers"])
    fuser = linear("attn_in_proj", d, len(config["selected_layers"]) * config["num_attention_heads"])
    for i in range(count):
        fuser |= linear(f"cond_in_projs.{i}", c, vision_dim)
        fuser |= linear(f"layers.{i}.attn.q_proj", d + c, d + c, False)
        fuser |= linear(f"layers.{i}.attn.k_proj", d + c, d + c, False)
        fuser |= linear(f"layers.{i}.attn.v_proj", d, d, False) | linear(f"layers.{i}.attn.o_proj", d, d, False)
        fuser |= linear(f"layers.{i}.mlp.gate_proj", 2 * d, d) | linear(f"layers.{i}.mlp.up_proj", 2 * d, d)
        fuser |= linear(f"layers.{i}.mlp.down_proj", d, 2 * d)
        fuser |= {f"layers.{i}.norm{n}.weight": 1 + draw(d) for n in (1, 2)}
        if i == count - 1 or config["deep_supervision"]:
            fuser |= linear(f"attn_out_projs.{i}", 1, d)
            fuser[f"attn_out_projs.{i}.weight"] /= 4  # so that no sigmoid saturates: it would tie what is ranked
    norm = {"weight": 1 + draw(hidden)}
    if config.get("le_norm_type") == "layernorm":
        norm["bias"] = draw(hidden)
    if not (config["le_layers"] and config["le_length"]):
        return {"attn_fuser": fuser}
    return {
        "attn_fuser": fuser,
        "learnable_embeddings": draw(len(config["le_layers"]), config["le_length"], hidden),
        "le_proj": {"weight": draw(hidden, hidden), "bias": draw(hidden)},
        "le_norm": norm,
    }


@torch.no_grad()
def plain_forward(backbone: gl.Backbone, config: Config, saved: Config, inputs: dict[str, Tensor]) -> PlainOutput:
    """Prune one unpadded sample and predict its next token."""
    llava = config["model_type"] == "llava_llama_gp"
    # LLaVA's count CLIP's hidden_states, from the front or from the back.
    states = list(range(-1, backbone.facts.vision_layers))
    blocks = [states[layer] if llava else layer for layer in config["selected_visual_layers"]]
    prompt = backbone.embed(inputs, blocks)
    length, layers = prompt.embeds.shape[1], len(backbone.layers)
    last = min(config["reduce_layer"], layers - 1)
    image = prompt.visual[0].nonzero()[:, 0]
    glimpse = config["le_length"] if config["le_layers"] else 0
    steps = torch.arange(1, glimpse + 1)
    positions = torch.cat([prompt.position_ids, prompt.position_ids[..., -1:] + steps], -1)
    hidden = torch.cat([prompt.embeds, torch.zeros(1, glimpse, prompt.embeds.shape[-1])], 1)
    features = {}
    for layer in range(last + 1):
        if glimpse and layer in config["le_layers"]:
            hidden[:, length:] += glimpse_vector(config, saved, config["le_layers"].index(layer))
        if layer in config["selected_layers"]:
            features[layer] = attention_row(backbone, layer, hidden, positions, config)[image]
        hidden = run_layer(backbone, layer, hidden, positions)
    rows = plain_vip(
        config,
        saved["attn_fuser"],
        torch.cat([features[layer] for layer in config["selected_layers"]], -1),
        [prompt.vision[block] for block in blocks],
        prompt.grid.tolist(),
    )
    keep = plain_keep(rows[-1].sigmoid(), config, prompt.grid.tolist())
    columns = torch.ones(length, dtype=torch.bool)
    columns[image] = keep
    hidden, positions = hidden[:, :length][:, columns], positions[..., :length][..., columns]
    for layer in range(last + 1, layers):
        hidden = run_layer(backbone, layer, hidden, positions)
    return PlainOutput(rows, keep, columns, backbone.logits(hidden[0, -1]))


def glimpse_vector(config: Config, saved: Config, index: int) -> Tensor:
    x = saved["learnable_embeddings"][index] @ saved["le_proj"]["weight"].T + saved["le_proj"]["bias"]
    if config.get("le_norm_type") == "layernorm":
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        return x * saved["le_norm"]["weight"] + saved["le_norm"]["bias"]
    return rms(x, saved["le_norm"]["weight"], config["rms_norm_eps"])


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def causal(n: int) -> Tensor:
    return torch.full((n, n), torch.finfo(torch.float32).min).triu(1)[None, None]


def run_layer(backbone: gl.Backbone, layer: int, hidden: Tensor, positions: Tensor) -> Tensor:
    embedded = backbone.position_embeddings(hidden, positions)
    out = backbone.layers[layer](
        hidden, attention_mask=causal(hidden.shape[1]), position_embeddings=embedded, past_key_values=None
    )
    return out[0] if isinstance(out, tuple) else out


def attention_row(backbone: gl.Backbone, layer: int, hidden: Tensor, positions: Tensor, config: Config) -> Tensor:
    """What the last position asks of every key: ``[n, heads]``, scores or log of their softmax."""
    block, heads = backbone.layers[layer], config["num_attention_heads"]
    states = block.input_layernorm(hidden)[0]
    q = block.self_attn.q_proj(states).unflatten(-1, (heads, -1))
    k = block.self_attn.k_proj(states).unflatten(-1, (-1, q.shape[-1]))
    cos, sin = backbone.position_embeddings(hidden, positions)
    if cos.ndim == 4:  # one table per axis: each takes its sections of the head, twice
        sections = 2 * list(backbone.text_config.rope_parameters["mrope_section"])
        cos, sin = (torch.cat([part[i % 3] for i, part in enumerate(t.split(sections, -1))], -1) for t in (cos, sin))
    q, k = (x * cos[0][:, None] + turn(x) * sin[0][:, None] for x in (q, k))
    k = k.repeat_interleave(heads // k.shape[1], 1)
    scores = torch.einsum("hd,nhd->nh", q[-1], k) / math.sqrt(q.shape[-1])
    return scores if config["use_attention_logits"] else scores.log_softmax(0)


def turn(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def places(grid: list[list[int]]) -> list[tuple[int, int, int, int]]:
    """(image, t, row, column) of every image token."""
    return [
        (image, frame, row, column)
        for image, (t, h, w) in enumerate(grid)
        for frame in range(t)
        for row in range(h)
        for column in range(w)
    ]


def plain_vip(
    config: Config, weights: dict[str, Tensor], features: Tensor, conditions: list[Tensor], grid: list[list[int]]
) -> Tensor:
    """Rows of logits ``[rows, N]``."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    where, heads = places(grid), config["attn_fuse_num_heads"]
    whole = config["model_type"] == "llava_llama_gp" or config["attn_fuse_global"]
    side = 10**6 if whole else vision_window(config)
    scope = [(image, frame, row // side, column // side) for image, frame, row, column in where]
    blind = torch.tensor([[a != b for b in scope] for a in scope])
    size = (config["attn_fuse_size"] + config["visual_cond_size"]) // heads
    frequency = torch.tensor([1e4 ** (-2 * j / (size // 2)) for j in range(size // 4)])
    angle = torch.stack([torch.cat([row * frequency, column * frequency]).repeat(2) for _, _, row, column in where])
    x, rows = linear("attn_in_proj", features), []
    for i, state in enumerate(conditions):
        u = rms(x, weights[f"layers.{i}.norm1.weight"], 1e-6)
        both = torch.cat([u, linear(f"cond_in_projs.{i}", state)], -1)
        q, k = (linear(f"layers.{i}.attn.{n}_proj", both).unflatten(-1, (heads, -1)) for n in "qk")
        q, k = (y * angle.cos()[:, None] + turn(y) * angle.sin()[:, None] for y in (q, k))
        v = linear(f"layers.{i}.attn.v_proj", u).unflatten(-1, (heads, -1))
        scores = torch.einsum("nhd,mhd->hnm", q, k) / math.sqrt(size)
        weight = scores.masked_fill(blind, -torch.inf).softmax(-1)
        x = x + linear(f"layers.{i}.attn.o_proj", torch.einsum("hnm,mhd->nhd", weight, v).flatten(1))
        y = rms(x, weights[f"layers.{i}.norm2.weight"], 1e-6)
        gate = ACT2FN[config["attn_fuse_hidden_act"]](linear(f"layers.{i}.mlp.gate_proj", y))
        gated = gate * linear(f"layers.{i}.mlp.up_proj", y)
        x = x + linear(f"layers.{i}.mlp.down_proj", gated)
        if f"attn_out_projs.{i}.weight" in weights:
            rows.append(linear(f"attn_out_projs.{i}", x)[:, 0])
    return torch.stack(rows)


def vision_window(config: Config) -> int:
    vision = config["vision_config"]
    return vision["window_size"] // vision["spatial_merge_size"] // vision["patch_size"]


def plain_keep(probability: Tensor, config: Config, grid: list[list[int]]) -> Tensor:
    """The keep rule, step by step as algorithm.md section 4 has it."""
    count, order = len(probability), probability.argsort(descending=True, stable=True)
    keep = probability > config["reduce_threshold"]
    ratio, least = config["max_remain_ratio"], config["min_remain_num"]
    if ratio is not None and int(keep.sum()) / count > ratio:
        keep = torch.zeros(count, dtype=torch.bool)
        keep[order[: int(ratio * count)]] = True
    if least is not None and int(keep.sum()) < least:
        keep[order[:least]] = True
    for anchor in config["anchor_positions"] or ():
        ((_, height, width),) = grid
        row, column = (0 if anchor[0] == "t" else height - 1), (0 if anchor[1] == "l" else width - 1)
        keep[row * width + column] = True
    return keep
