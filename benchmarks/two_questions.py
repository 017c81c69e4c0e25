"""A picture of what a pruner keeps of one page for several questions.

python benchmarks/two_questions.py runs/dense_attribution/fit_0/pruner --page 5 --questions 3 1 --output page.png

README's first picture is this one, of the recipe's pruner of seed 0.
"""

from __future__ import annotations

import argparse
from io import BytesIO

import torch
from matplotlib.figure import Figure
from PIL import Image

import glimpse_lightning as gl


def main() -> None:
    """Draw the picture, and print the questions with their answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pruner", help="folder of a trained pruner")
    parser.add_argument("--backbone", default="glimpse-dense", help="default: %(default)s")
    parser.add_argument("--page", type=int, default=0, help="number of the test page; default: %(default)s")
    parser.add_argument("--questions", type=int, nargs="+", default=[0, 1], help="of the page; default: 0 1")
    parser.add_argument("--output", required=True, help="PNG file")
    options = parser.parse_args()
    model = gl.PrunedVLM(gl.load_backbone(options.backbone), gl.load_pruner(options.pruner))
    asked = 1 + max(options.questions)
    data = gl.DenseGlyphVQA("test", asked * (1 + options.page), questions_per_image=asked)
    figure = Figure(figsize=(5.2 * len(options.questions), 5.8), dpi=100)
    panels = figure.subplots(1, len(options.questions), squeeze=False)[0]
    for axes, number in zip(panels, options.questions, strict=True):
        sample = data[asked * options.page + number]
        batch = model.backbone.collate([sample])
        with torch.no_grad():
            out = model.prefill(**batch.inputs, questions=batch.questions)
            (answer,) = model.backbone.decode(model.generate(out, max_new_tokens=64, do_sample=False))
        kept, total = int(out.kept().sum()), len(out.kept())
        print(f"{sample.question!r}: {answer!r} ({sample.answers[0]!r}), {kept} of {total} tokens")
        axes.imshow(gl.overlay(sample.images[0], out, boxes=sample.boxes[0] if sample.boxes else ()))
        axes.set_title(f"{sample.question}\n{answer}   ({kept} of {total} tokens)", fontsize=10)
        axes.axis("off")
    figure.tight_layout()
    drawn = BytesIO()
    figure.savefig(drawn)
    Image.open(drawn).convert("RGB").quantize(256).save(options.output, optimize=True)


if __name__ == "__main__":
    main()
