"""A method's own code as a policy: a function of one image that returns the indices of the tokens it keeps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glimpse_lightning.core.layers import Layer, checked
from glimpse_lightning.core.visual_tokens import VisionAttention, VisionKeys, VisionTap, VisualTokens
from glimpse_lightning.policies.base import Policy
from glimpse_lightning.policies.budget import Budget
from glimpse_lightning.policies.budgeted import Budgeted
from glimpse_lightning.runtime.errors import GlimpseError, nearest
from glimpse_lightning.scorers.base import Requires, Scorer
from glimpse_lightning.scorers.fixed_ratio import FixedRatio

INPUTS = ("features", "scores", "attention", "vision", "vision_keys", "keys", "text", "question", "grid", "budget")
"""Names by which a function's parameters ask for what it gets."""


class FromFunction(Budgeted):
    """The tokens that a function picks from one image at a time, such as a method's code as its authors wrote it.

    The function gets what its parameters ask for by name, of N tokens of one image in raster order:

    * ``features`` ``[N, D]``: states at the stage.
    * ``scores`` ``[N]``: scores of the stage's scorer.
    * ``attention`` ``[N]``: attention that tokens get in a block of the vision tower, from the class token where there
      is one, else from all tokens; fp32.
    * ``vision`` ``[N, Dv]``, ``vision_keys`` ``[N, Dk]``: that block's output, and its keys, averaged over heads.
    * ``keys`` ``[N, Hk * d]``: keys of the decoder layer before the stage.
    * ``text`` ``[T, D]``: states of the prompt's other tokens at the stage; ``question``: its raw text.
    * ``grid``: numbers (t, h, w) of frames, rows and columns of the image's tokens.
    * ``budget``: number of tokens to keep.

    It returns their indices in any order, or a boolean mask ``[N]``, as a tensor, an array or a list. It need not keep
    to the budget; tables count what it kept. Images are done one after another and without gradients: this is for
    comparing, and for proving a port (``glimpse-lightning golden``), not for speed. A pruner with a function cannot be
    saved; a recipe that names it can be shared.

    Args:
        function: the function, or in a recipe its dotted path.
        budget: number of tokens to keep, or a ratio; see :class:`~glimpse_lightning.policies.budgeted.Budgeted`. It
            is counted per image unless it says otherwise (``per: sample``: a sample's images come as one).
        arguments: other arguments of the function, by name.
        layer: block of the vision tower that ``attention``, ``vision`` and ``vision_keys`` are of.
        **keys: arguments of a budget, in place of ``budget``.

    Raises:
        GlimpseError: where the function has a parameter that is neither an input nor among ``arguments``; in a run,
            where it returns no index, one twice, or one out of range.
    """

    layer_arguments = {"layer": "vision"}
    default_per = "item"

    def __init__(
        self,
        function: Callable[..., Any],
        budget: Budget | float | None = None,
        *,
        arguments: dict[str, Any] | None = None,
        layer: Layer = -2,
        **keys: Any,
    ) -> None:
        super().__init__(budget, **keys)
        self.function = function
        self.arguments = arguments
        self.layer: int = checked("layer", layer)
        self._inputs = inputs_of(function, arguments or {})

    @property
    def _taps(self) -> dict[str, VisionTap]:
        """Requests to the vision tower, by the input that they are for."""
        return {
            "attention": VisionAttention(self.layer, queries="class"),
            "vision": self.layer,
            "vision_keys": VisionKeys(self.layer),
        }

    @property
    def requires(self) -> Requires:
        taps = tuple(tap for name, tap in self._taps.items() if name in self._inputs)
        return Requires(vision_layers=taps, text="text" in self._inputs, keys="keys" in self._inputs)

    @torch.no_grad()
    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        group, budget = self.budget(tokens)
        keep = torch.zeros_like(scores, dtype=torch.bool)
        start = 0
        for number, (size, most) in enumerate(
            zip(torch.bincount(group, minlength=len(budget)).tolist(), budget.tolist(), strict=True)
        ):
            if size:
                here = slice(start, start + size)
                inputs = self._given(tokens, scores, here, min(size, most), number)
                found = indices_of(self.function(**inputs, **(self.arguments or {})), size, most)
                keep[start + found.to(keep.device)] = True
            start += size
        return keep & (scores > -torch.inf)

    def _given(self, tokens: VisualTokens, scores: Tensor, here: slice, budget: int, group: int) -> dict[str, Any]:
        """What the function gets of the tokens ``here``, which are one group of the budget."""
        sample = int(tokens.sample[here][0])
        given: dict[str, Any] = {}
        for name in self._inputs:
            if name == "attention":
                given[name] = tokens.attention(VisionAttention(self.layer, queries="class"))[here].clone()
            elif name in self._taps:
                given[name] = tokens.vision[self._taps[name]][here].clone()
            elif name == "text":
                assert tokens.text is not None
                given[name] = tokens.text[tokens.text_sample == sample]
            elif name == "question":
                given[name] = tokens.questions[sample] if tokens.questions else ""
            elif name == "grid":
                given[name] = self._grid(tokens, here, group)
            elif name == "budget":
                given[name] = budget
            else:
                whole = {"features": tokens.hidden, "scores": scores, "keys": tokens.keys}[name]
                assert whole is not None
                given[name] = whole[here].clone()
        return given

    def _grid(self, tokens: VisualTokens, here: slice, group: int) -> tuple[int, ...]:
        grid = tokens.grid[group].tolist() if self.budget.per == "item" else []
        if not grid or here.stop - here.start != grid[0] * grid[1] * grid[2]:
            raise GlimpseError(
                f"{called(self.function)} asks for the `grid` of an image, but "
                + ("an earlier stage has dropped some of its tokens." if grid else "gets a sample's images as one.")
                + " Let it prune first, with `per: item`."
            )
        return tuple(grid)


def from_function(
    function: Callable[..., Any], budget: Budget | float | None = None, *, scorer: Scorer | None = None, **keys: Any
) -> tuple[Scorer, Policy]:
    """A scorer and a policy that prune as ``function`` says: a method's own code in a stage or a row of a table.

    Args:
        function: ``f(features, attention, ..., budget) -> indices`` of one image; its parameters' names say what it
            gets. See :class:`FromFunction`.
        budget: number of tokens to keep, or a ratio.
        scorer: scorer whose ``scores`` the function gets; by default one that computes nothing.
        **keys: other arguments of :class:`FromFunction`.

    Raises:
        GlimpseError: where the function has a parameter that nothing is given to.

    Examples:
        >>> def first(features, budget):  # the first tokens of every image
        ...     return range(budget)
        >>> stage = gl.PruneStage(-1, *gl.from_function(first, 0.1))
        >>> model = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), gl.Pruner([stage]))
        >>> batch = model.backbone.collate([gl.GlyphVQA("test")[0]])
        >>> int(model.prefill(**batch.inputs).keep[0].sum())
        25
    """
    return FixedRatio() if scorer is None else scorer, FromFunction(function, budget, **keys)


def called(function: Callable[..., Any]) -> str:
    """Name of a function in messages."""
    return f"`{getattr(function, '__qualname__', type(function).__name__)}`"


def inputs_of(function: Any, arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the inputs that the parameters of ``function`` ask for.

    Raises:
        GlimpseError: where it is no function, or has a parameter that nothing is given to.
    """
    if not callable(function):
        raise GlimpseError(
            f"Expected `function` to be a function, but got {function!r}. A recipe names it by its dotted path; a "
            "saved pruner cannot hold one."
        )
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise GlimpseError(f"The parameters of {called(function)} cannot be read; wrap it in a `def`.") from error
    named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    for each in parameters:
        given = each.name in arguments or each.default is not each.empty
        if (each in named and each.name not in INPUTS and not given) or each.kind is each.POSITIONAL_ONLY:
            raise GlimpseError(
                f"{called(function)} has a parameter `{each.name}` that nothing is given to."
                f"{nearest(each.name, INPUTS)} Name it {', '.join(INPUTS[:-1])} or {INPUTS[-1]} (what they are: "
                "docs/authors_code.md), or give its value in `arguments`."
            )
    known = [each.name for each in named]
    open_ended = any(each.kind is each.VAR_KEYWORD for each in parameters)
    if strange := [name for name in arguments if name not in known and not open_ended]:
        raise GlimpseError(f"{called(function)} has no parameter `{strange[0]}`.{nearest(strange[0], known)}")
    return tuple(name for name in known if name in INPUTS and name not in arguments)


def indices_of(result: Any, size: int, budget: int) -> Tensor:
    """Indices of an image's tokens that a function returned: in its order, or ascending from a mask.

    Args:
        result: what it returned.
        size: number of the image's tokens.
        budget: number of tokens that it was asked for.

    Raises:
        GlimpseError: where that is nothing though ``budget`` is more, or an index is out of range or there twice.
    """
    found = result if isinstance(result, Tensor) else torch.as_tensor(np.asarray([*result]))
    if found.dtype == torch.bool:
        if found.shape != (size,):
            raise GlimpseError(f"Expected a mask of the image's {size} tokens, but got one of shape {[*found.shape]}.")
        found = found.nonzero()[:, 0]
    if (found.is_floating_point() and found.numel()) or found.ndim != 1:
        raise GlimpseError(
            f"Expected indices of tokens, a list of whole numbers, but got {str(found.dtype).removeprefix('torch.')} "
            f"of shape {[*found.shape]}."
        )
    chosen = found.long().cpu()
    if not len(chosen) and budget:
        raise GlimpseError(f"Expected indices of up to {budget} tokens to keep, but the function returned none.")
    seen: set[int] = set()
    for index in chosen.tolist():
        if not 0 <= index < size:
            raise GlimpseError(
                f"Expected indices of the image's {size} tokens, from 0 to {size - 1}, but the function returned "
                f"{index}. A class token and text before the image do not count."
            )
        if index in seen:
            raise GlimpseError(f"Expected every index once, but the function returned {index} twice.")
        seen.add(index)
    return chosen
