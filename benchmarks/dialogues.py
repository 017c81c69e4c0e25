"""A second question about one picture: asked of the tokens that the first one has chosen, and of its own.

python benchmarks/dialogues.py --number 200 --pruner runs/dense_attribution/fit_0/pruner

Pairs of test questions about one page. The embedded models have learned single questions, so the second question is
asked without the text of the first. Four sets of tokens answer it: those that the first question has kept, as with
`Dialogue(keeps="cache")`; those that the second question chooses itself, as with `states` and `nothing`; both sets
together; and all tokens. The cost of a second turn is measured on whole dialogues.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import mean, median
from typing import Any, get_args

import torch
from torch import Tensor

import glimpse_lightning as gl
from glimpse_lightning.evaluation.intervals import mean_estimate
from glimpse_lightning.metrics.exact_match import exact_match
from glimpse_lightning.model.dialogue import Keeps
from glimpse_lightning.runtime.machine import describe, device_name

Pairs = Sequence[tuple[gl.Sample, gl.Sample]]
METHODS: dict[str, Callable[[Any], gl.PruneStage]] = {
    "AttentionRank after layer 3": lambda policy: gl.PruneStage(3, gl.scorers.AttentionRank(), policy),
    "VisionRank before the decoder": lambda policy: gl.PruneStage(-1, gl.scorers.VisionRank(), policy),
    "Random before the decoder": lambda policy: gl.PruneStage(-1, gl.scorers.Random(), policy),
}
"""Methods without training."""
TOKENS = 64
"""Longest answer."""
BATCH = 16


def pages(data: Any, number: int, **options: Any) -> Pairs:
    """Pairs of test questions about one page each."""
    found = data("test", max(1, 2 * number), questions_per_image=2, **options)
    return [(found[2 * place], found[2 * place + 1]) for place in range(number)]


def pruners(folder: str | None, keep: float) -> dict[str, gl.Pruner]:
    """The methods that are compared, by name."""
    found = {name: gl.Pruner([make(gl.policies.KeepRatio(keep))]) for name, make in METHODS.items()}
    if folder is None:
        return found
    trained = gl.load_pruner(folder)
    stage = trained.stages[0]
    return {f"{type(stage.scorer).__name__}, trained, after layer {stage.after_layer}": trained, **found}


@torch.no_grad()
def ask(model: gl.PrunedVLM, samples: list[gl.Sample], select: Any = None) -> tuple[list[float], list[Tensor]]:
    """Scores of a batch of questions, and the tokens ``[V]`` that each stage keeps."""
    batch = model.backbone.collate(samples)
    out = model.prefill(**batch.inputs, questions=batch.questions, select=select)
    answers = model.backbone.decode(model.generate(out, max_new_tokens=TOKENS, do_sample=False))
    return [exact_match(answer, sample.answers) for answer, sample in zip(answers, samples, strict=True)], out.keep


def second_questions(model: gl.PrunedVLM, pairs: Pairs) -> list[str]:
    """Cells: tokens kept, and accuracy of second questions of their own tokens, of the first one's, and of both."""
    scores: dict[str, list[float]] = {"own": [], "first": [], "both": []}
    shares: dict[str, list[float]] = {"own": [], "both": []}
    for place in range(0, len(pairs), BATCH):
        first, second = ([pair[side] for pair in pairs[place : place + BATCH]] for side in (0, 1))
        earlier = ask(model, first)[1][0]
        right, (own, *_) = ask(model, second)
        scores["own"] += right
        for name, kept in (("first", earlier), ("both", earlier | own)):
            scores[name] += ask(model, second, lambda stage, *_, kept=kept: kept)[0]
        shares["own"] += [float(own.float().mean())] * len(second)
        shares["both"] += [float((earlier | own).float().mean())] * len(second)
    cells = [accuracy(scores[name]) for name in ("own", "first", "both")]
    return [f"{mean(shares['own']):.1%}", *cells[:2], f"{cells[2]} ({mean(shares['both']):.1%})"]


def accuracy(scores: list[float]) -> str:
    """A mean with its interval."""
    found = mean_estimate(scores)
    return f"{100 * found.value:.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def second_turn(model: gl.PrunedVLM, pairs: Pairs, keeps: Keeps) -> list[str]:
    """Cells: milliseconds to a second turn's first token, tokens that ran, bytes kept between the turns."""
    times, ran, held = [], 0, 0
    for first, second in pairs:
        dialogue = gl.Dialogue(model, keeps)
        held = dialogue.ask(first.question, first.images, max_new_tokens=8).kept_bytes
        start = time.perf_counter()
        ran = dialogue.ask(second.question, max_new_tokens=1).ran
        times.append(1000 * (time.perf_counter() - start))
    return [f"{median(times):.0f}", f"{ran:,}", f"{held:,}"]


def row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="glimpse-dense", help="default: %(default)s")
    parser.add_argument("--data", choices=("DenseGlyphVQA", "GlyphVQA"), default="DenseGlyphVQA")
    parser.add_argument("--pruner", help="folder of a trained pruner")
    parser.add_argument("--keep", type=float, default=0.05, help="share that other methods keep; default: %(default)s")
    parser.add_argument(
        "--number", type=int, default=200, help="pairs of questions; 0: costs alone; default: %(default)s"
    )
    parser.add_argument("--timed", type=int, default=20, help="dialogues that are timed; default: %(default)s")
    parser.add_argument(
        "--timed_size", type=int, default=448, help="side of their pages in pixels; default: %(default)s"
    )
    options = parser.parse_args()
    backbone, data = gl.load_backbone(options.backbone), getattr(gl, options.data)
    pairs = pages(data, options.number)
    processor, about = device_name(torch.device("cpu")), describe(torch.device("cpu"))
    print(f"{options.backbone}, {options.data}, {len(pairs)} pairs of test questions, {about['date']}, commit")
    print(f"{about['commit']}, {processor}, {torch.get_num_threads()} threads\n")
    full = gl.PrunedVLM(backbone)
    models = {name: gl.PrunedVLM(backbone, pruner) for name, pruner in pruners(options.pruner, options.keep).items()}
    if pairs:
        second = [pair[1] for pair in pairs]
        scores = [score for at in range(0, len(pairs), BATCH) for score in ask(full, second[at : at + BATCH])[0]]
        print(f"Second question, all tokens: {accuracy(scores)}\n")
        row("method", "kept", "its own tokens", "those of the first question", "those of both (kept)")
        row(*["---"] * 5)
        for name, model in models.items():
            row(name, *second_questions(model, pairs))
        print()
    timed = pages(data, options.timed, image_size=options.timed_size)
    row("method", "kept between turns", "second turn, ms to its first token", "tokens that ran", "bytes kept")
    row(*["---"] * 5)
    for name, model in {**models, "full model": full}.items():
        for keeps in get_args(Keeps):
            row(name, keeps, *second_turn(model, timed, keeps))


if __name__ == "__main__":
    main()
