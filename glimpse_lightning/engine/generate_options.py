"""Options of Hugging Face's ``generate``: those that a pruned prompt excludes, and those that a checkpoint sets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig

from glimpse_lightning.runtime.errors import GlimpseError

_STATES = "layers of the prompt run apart from decoding, and on fewer tokens after each stage"
_ASSISTED = "the drafting model would need the prompt, and images, of its own"
_ELSEWHERE = "it runs decoding code of its own, which knows nothing of the pruned prompt"
_GUIDANCE = "it asks the model a second prompt, step by step, without the images"

IMPOSSIBLE = {
    "output_attentions": _STATES,
    "output_hidden_states": _STATES,
    "assistant_model": _ASSISTED,
    "assistant_early_exit": _ASSISTED,
    "use_mtp": _ASSISTED,
    "custom_generate": _ELSEWHERE,
    "penalty_alpha": _ELSEWHERE,
    "dola_layers": _ELSEWHERE,
    "num_beam_groups": _ELSEWHERE,
    "constraints": _ELSEWHERE,
    "force_words_ids": _ELSEWHERE,
    "guidance_scale": _GUIDANCE,
    "negative_prompt_ids": _GUIDANCE,
    "negative_prompt_attention_mask": _GUIDANCE,
    "token_healing": "it changes the end of the prompt, which has been pruned already",
    "prefill_chunk_size": "the prompt is pruned in one piece",
    "past_key_values": "the keys and values of a prompt are made while it is pruned",
    "inputs_embeds": "visual tokens are found by their ids",
    "position_ids": "positions are counted before tokens are dropped",
}
"""The reason why an option is impossible, by option."""

NEUTRAL = {"guidance_scale": 1, "num_beam_groups": 1, "penalty_alpha": 0}
"""Values that switch an option off; ``None`` and ``False`` do so for all options."""

NOT_GREEDY = frozenset(
    "do_sample temperature top_k top_p top_h min_p typical_p epsilon_cutoff eta_cutoff max_length max_new_tokens "
    "bos_token_id pad_token_id use_cache".split()
)
"""Fields of a generation config that greedy decoding of a given length does not read."""


def check_options(options: Mapping[str, Any], *configs: GenerationConfig | None) -> None:
    """Raise for an impossible option among the arguments ``options`` or, where those do not set it, in ``configs``.

    Raises:
        GlimpseError: where there is one; the message names the option, the reason, and the Hugging Face model as the
            remedy.
    """
    for name, why in IMPOSSIBLE.items():
        given = (options.get(name), *(getattr(config, name, None) for config in configs))
        value = next((value for value in given if value is not None), None)
        if value is None or value is False or (name in NEUTRAL and value == NEUTRAL[name]):
            continue
        what = name.replace("output_", "returning ").replace("_", " ") if why is _STATES else f"`{name}`"
        raise GlimpseError(
            f"`generate` does not allow {what} where visual tokens are pruned: {why}. Leave the option out, or use the "
            "full Hugging Face model: `backbone.model.generate(**backbone.hf_inputs(inputs), ...)`."
        )


def greedy_settings(config: GenerationConfig) -> dict[str, Any]:
    """Fields of a checkpoint's generation config, other than the defaults, that greedy decoding follows, as plain
    values: ``repetition_penalty``, ``no_repeat_ngram_size``, ``suppress_tokens``, ``eos_token_id`` and so on.
    """
    fields: dict[str, Any] = json.loads(config.to_json_string(ignore_metadata=True))
    return {name: value for name, value in fields.items() if name not in NOT_GREEDY}
