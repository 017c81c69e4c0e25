"""The command line: ``glimpse-lightning``, or ``python -m glimpse_lightning``.

Modules that need torch are imported only for commands that need them, so that the others start fast.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

from glimpse_lightning.cli.brief_help import brief
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.paths import expanded_flags
from glimpse_lightning.runtime.renames import UNTIL
from glimpse_lightning.runtime.terminal import forgiving

HELP = """\
usage: glimpse-lightning COMMAND [options]      (or: python -m glimpse_lightning COMMAND [options])

Dynamic visual-token pruning for vision-language models.

commands:
  fit       train a pruner, then test it                fit --config vip_kl
  validate  evaluate on the validation split            validate --config vip_kl
  test      the full table, baselines included          test --config vip_kl
  predict   answer questions, draw the kept tokens      predict --config vip_kl --image FILE --question TEXT
  ablate    many runs of one recipe, compared           ablate --config ablations/methods
  compare   finished runs, question by question         compare runs/random/test_0 runs/fastv/test_0
  score     score saved predictions again               score runs/quick/test_0/predictions
  bench     speed and memory next to theory             bench --config bench/cpu --output bench.json
  serve     a server with OpenAI's chat interface       serve --backbone NAME --pruner DIR
  demo      a web page that shows what is kept          demo --backbone NAME --pruner DIR
  batch     a table of questions on a Ray cluster       batch --input FILE --output DIR --backbone NAME
  export    a saved pruner in another format            export --format upstream --pruner DIR --output DIR
  publish   a run's pruner on the Hub, with its card    publish RUN --repo USER/NAME
  reproduce a paper's table run again, and compared     reproduce free_form
  golden    what a method's own code keeps, and ports   golden record my_code.select --output FILE
  recipes   list, show or copy the packaged recipes     recipes list | show NAME | copy NAME DESTINATION

A --config is a YAML file or the name of a packaged recipe. Flags overrule the config, and the config a checkpoint:
  fit --config vip_kl --model.after_layer 2 --model.optimizer.lr 3e-4 --seed_everything 1
test and predict take the weights of the recipe's last finished fit, unless --ckpt_path FILE names others.

more help:
  COMMAND --help                      the most used options; COMMAND --help all for every one
  fit --model.scorer.help             the classes of one part (scorer, policy, objective, ...)
  fit --model.scorer.help VIP         the options of one of them
  fit --config vip_kl --print_config  the resolved configuration
"""

RECIPES_HELP = """\
usage: glimpse-lightning recipes list               every recipe and its purpose
       glimpse-lightning recipes show NAME          print one
       glimpse-lightning recipes copy NAME DEST     copy one to a file or into a folder
"""
OUT_OF_MEMORY = (
    "Out of memory ({}). Lower `data.batch_size` (and raise `trainer.accumulate_grad_batches` by as much), "
    "`data.eval_batch_size`, or with GRPO `model.objective.group_size` and `max_new_tokens`; train adapters "
    "(`model.objective.lora`) instead of the whole model; set `model.dtype: bfloat16`; use smaller images. The same "
    "command goes on from the last checkpoint."
)
RANK_LOST = (
    "Another rank of this run has ended, and this one with it. Why, that rank says above; where it says nothing, the "
    "system has killed it, mostly for want of memory."
)
OTHER_TORCHVISION = (
    "The torchvision of this environment was made for another torch, and nothing of transformers loads with it. Remove "
    "it (`pip uninstall torchvision`; few models need it for images), or install the build for this torch: "
    "docs/backbones.md has the command."
)
COMMANDS = (
    "fit", "validate", "test", "predict", "ablate", "compare", "score", "bench", "serve", "demo", "batch", "export",
    "publish", "reproduce", "golden", "recipes",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. An error that a user can act on becomes one paragraph on stderr."""
    # Python hides a deprecation that a library triggers, and the parser is what meets old names in a recipe.
    warnings.filterwarnings("default", rf".* works until {UNTIL}", DeprecationWarning)
    if argv is None and not sys.flags.safe_path and "" not in sys.path:
        sys.path.append(os.getcwd())  # modules of the user's, as with `python -m`, but behind everything installed
    args = expanded_flags(sys.argv[1:] if argv is None else argv)
    with forgiving():
        try:
            return _dispatch(args)
        except KeyboardInterrupt:  # of the imports before a run, or of one that has nothing to keep
            if os.environ.get("GLIMPSE_DEBUG"):
                raise
            print("Interrupted.", file=sys.stderr)
            return 128 + signal.SIGINT
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # Lightning's own status for it is 1
                return 128 + signal.SIGINT
            raise
        except Exception as error:
            message = explain(error)
            if message is None or os.environ.get("GLIMPSE_DEBUG"):
                raise
            print(f"error: {message}", file=sys.stderr)
            return 1


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if args[0] == "--version":
        from glimpse_lightning import __version__

        print(__version__)
        return 0
    if page := brief(args):
        print(page, end="")
        return 0
    command = args[0]
    if command not in COMMANDS:
        raise GlimpseError(f"Expected a command out of {', '.join(COMMANDS)}, but got {command!r}; try --help.")
    if command == "recipes":
        return _recipes(args[1:])
    if command == "export":
        from glimpse_lightning.cli import export

        print(export.run(args[1:]))
        return 0
    if command == "publish":
        from glimpse_lightning.cli import publish

        publish.run(args[1:])
        return 0
    if command == "ablate":
        from glimpse_lightning.ablation import command as ablate

        return ablate.run(args[1:])
    if command == "compare":
        from glimpse_lightning.ablation import compare

        return compare.run(args[1:])
    if command == "score":
        from glimpse_lightning.cli import score as scoring

        scoring.run(args[1:])
        return 0
    if command == "bench":
        from glimpse_lightning.bench import command as bench

        return bench.run(args[1:])
    if command == "reproduce":
        from glimpse_lightning.reproduction import command as reproduction

        return reproduction.run(args[1:])
    if command == "serve":
        from glimpse_lightning.serving import command as serve

        return serve.run(args[1:])
    if command == "demo":
        from glimpse_lightning.demo import command as demo

        return demo.run(args[1:])
    if command == "batch":
        from glimpse_lightning.integrations.ray import command as batch

        return batch.run(args[1:])
    if command == "golden":
        from glimpse_lightning.goldens import command as golden

        return golden.run(args[1:])
    from glimpse_lightning.cli.trainer_runs import run

    run(args)
    return 0


def _recipes(args: list[str]) -> int:
    from glimpse_lightning.cli import packaged_recipes

    match args:
        case ["list"]:
            known = packaged_recipes.recipes()
            width = max(map(len, known), default=0)
            for name, path in known.items():
                print(f"{name:<{width}}  {packaged_recipes.purpose(path)}")
        case ["show", name]:
            print(packaged_recipes.find_recipe(name).read_text(encoding="utf-8"), end="")
        case ["copy", name, destination]:
            print(packaged_recipes.copy_recipe(name, Path(destination)))
        case [] | ["-h"] | ["--help"]:
            print(RECIPES_HELP, end="")
        case _:
            raise GlimpseError(f"Expected `recipes list`, `show NAME` or `copy NAME DEST`, but got {' '.join(args)!r}.")
    return 0


def explain(error: BaseException) -> str | None:
    """An error as one paragraph for the user; ``None`` for a defect, whose traceback is shown."""
    if isinstance(error, GlimpseError):
        return _one_paragraph(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        from glimpse_lightning.runtime.whole_files import full_disk

        return str(full_disk(error.filename))
    if _out_of_memory(error):
        return OUT_OF_MEMORY.format(_one_paragraph(error).split(". ")[0])
    if _rank_lost(error):
        return RANK_LOST
    if _other_torchvision(error):
        return OTHER_TORCHVISION
    if type(error).__module__.startswith("omegaconf"):
        key = getattr(error, "full_key", None)
        where = f" at `{key}`" if key else ""
        return f"An interpolation{where} cannot be resolved: {str(error).splitlines()[0]}. Check the `${{...}}` there."
    if isinstance(error, ValueError) and _raised_here(error):
        return _one_paragraph(error)
    return None


def _out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch has one class for accelerators, and only a message on the CPU."""
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def _rank_lost(error: BaseException) -> bool:
    """Whether a rank is gone, by the message: gloo raises a plain RuntimeError for it, NCCL a subclass."""
    text = str(error)
    return isinstance(error, RuntimeError) and (
        ("gloo" in text and ("by peer" in text or "Broken pipe" in text)) or "remote process exited" in text
    )


def _other_torchvision(error: BaseException | None) -> bool:
    """Whether torchvision could not register its operators, in an error or in one that it came from."""
    seen = 0
    while error is not None and seen < 20:
        if "operator torchvision::" in str(error):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False


def _raised_here(error: BaseException) -> bool:
    """Whether this package raised ``error``: its messages say what to do."""
    frames = traceback.extract_tb(error.__traceback__)
    package = Path(__file__).parent.resolve()
    return bool(frames) and Path(frames[-1].filename).resolve().is_relative_to(package)


def _one_paragraph(error: BaseException) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
