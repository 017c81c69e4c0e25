"""The most used options, by command; `COMMAND --help all` lists all of them.

Nothing here imports torch, so that the page is printed at once.
"""

from __future__ import annotations

from collections.abc import Sequence

RUN = {
    "--config NAME": "a recipe: a YAML file or the name of a packaged one; several are laid over each other",
    "--backbone NAME": "glimpse-tiny, glimpse-dense, glimpse-llava, a hub id or a folder",
    "--model.processor SETTINGS": "of the image processor, as {max_pixels: 1605632} (as saved with the model)",
    "--trainer.default_root_dir DIR": "folder of all runs (runs)",
    "--trainer.precision KIND": "auto, 32-true, bf16-mixed, ...",
    "--trainer.devices N": "number of devices of the machine (auto)",
    "--seed_everything N": "seed of weights, order and draws (0)",
}
PARTS = {
    "--model.after_layer K": "last decoder layer that runs on all tokens, from 0; or a share of the depth, as 0.25",
    "--model.scorer CLASS": "scores tokens: VIP, AttentionRank, ...; --model.scorer.help lists them",
    "--model.policy CLASS": "turns scores into a choice: Threshold, KeepRatio, ...",
}
ASKED = {
    "--pruner DIR": "a saved pruner in place of the recipe's parts",
    "--ckpt_path FILE": "weights of a checkpoint; default: the recipe's last finished fit",
    "--model.max_new_tokens N": "length of the longest answer (32)",
}
OPTIONS = {
    "fit": {
        **RUN,
        **PARTS,
        "--model.objective CLASS": "loss of the training: KL, Attribution (no annotation), Mask (boxes), GRPO, ...",
        "--model.optimizer.lr RATE": "highest learning rate (0.001)",
        "--vars.NAME VALUE": "a variable of the recipe, as --vars.retention 0.1",
        "--data.train CLASS": "dataset: JSONL, Table, HubVQA, GlyphVQA, ...; --data.val and --data.test likewise",
        "--data.batch_size N": "samples of a step on each device (16)",
        "--trainer.max_steps N": "number of steps",
        "--ckpt_path FILE": "checkpoint to go on from; default: the same recipe's fit, if it was interrupted",
    },
    "validate": {**RUN, **PARTS, **ASKED, "--data.val CLASS": "dataset: JSONL, Table, HubVQA, GlyphVQA, ..."},
    "test": {
        **RUN,
        **PARTS,
        **ASKED,
        "--data.test CLASS": "dataset: JSONL, Table, HubVQA, GlyphVQA, ...",
        "--data.test_size N": "number of questions (all)",
        "--model.metric CLASS": "score of an answer: ExactMatch, ANLS, VQAAccuracy, ...",
        "--model.baselines [CLASS, ...]": "scorers to compare with (every one that needs no training)",
        "--limit N": "number of questions of each task of a suite",
    },
    "predict": {
        **RUN,
        **PARTS,
        **ASKED,
        "--image FILE": "image file to ask about; [a.png, b.png]: one question about all of them; a folder: about each",
        "--question TEXT": "a question to answer in place of the data's",
        "--data.predict CLASS": "dataset of questions: JSONL, Table, HubVQA, ...",
        "--data.eval_batch_size N": "questions in a batch (4; of GlyphVQA 50, of a folder of images 1)",
        "--overlays N": "number of pictures of kept tokens to draw, -1 for all (8)",
    },
}
PURPOSE = {
    "fit": "Train a pruner, then test it.",
    "validate": "Evaluate on the validation split.",
    "test": "Compare the pruned model with the full one and with baselines.",
    "predict": "Answer questions, and draw which tokens were kept.",
}


def brief(args: Sequence[str]) -> str | None:
    """The help page that a command line asks for; ``None`` where it asks for none."""
    if len(args) != 2 or args[0] not in OPTIONS or args[1] not in ("-h", "--help"):
        return None
    command, options = args[0], OPTIONS[args[0]]
    width = max(map(len, options))
    lines = (f"  {name:<{width}}  {meaning}" for name, meaning in options.items())
    return (
        f"usage: glimpse-lightning {command} --config NAME [options]\n\n{PURPOSE[command]}\n\n"
        + "\n".join(lines)
        + f"\n\nEvery option: {command} --help all. Those of one part: {command} --model.scorer.help VIP. The "
        f"resolved\nconfiguration: {command} --config NAME --print_config. All recipes: recipes list.\n"
    )


def whole(args: Sequence[str]) -> list[str]:
    """Arguments with `--help all` as the parser's own `--help`."""
    asked = len(args) > 2 and args[-1] == "all" and args[-2] in ("-h", "--help")
    return [*args[:-2], "--help"] if asked else list(args)
