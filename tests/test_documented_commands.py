"""Every command of the documentation runs to its end, in the order in which a user would give them.

A chapter is a folder and the commands that share it. Commands are as printed, with flags after them that make them
small; the models of 7 billion parameters are narrow stand-ins under their names in a Hub cache.
"""

from __future__ import annotations

import gc
import json
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import NamedTuple

import datasets
import pytest
from hub_cache import store
from test_docs import COMMANDS, code
from user_folder import COPIES, write_hub, write_inputs, write_replies

import glimpse_lightning as gl
from glimpse_lightning.__main__ import main

FIT = "--trainer.accelerator cpu --data.num_workers 0 --model.max_new_tokens 2"
TINY = (
    f"{FIT} --trainer.max_steps 2 --trainer.val_check_interval 2 --trainer.limit_val_batches 1 --data.batch_size 4"
    " --data.eval_batch_size 2 --data.fit_test_size 2"
)
TEST = "--trainer.accelerator cpu --data.num_workers 0 --model.max_new_tokens 2 --data.test_size 2"
SUITE = "--trainer.accelerator cpu --data.num_workers 0 --data.max_new_tokens 2 --limit 2"
COPIED = f"{SUITE} --data.places.data_dir {COPIES}"
PLACES = {"/big/disk/": "big/disk/", "/models/": "models/"}
"""Absolute paths of the pages, and those of the test's folder in their place."""
QWEN = "--backbone Qwen/Qwen2.5-VL-7B-Instruct --model.dtype bfloat16"
RELEASED = "--pruner GlimpsePrune_Qwen2.5-VL-7B-Instruct"


class Step(NamedTuple):
    """One command.

    Attributes:
        command: command as printed, without the program.
        leaves: files that it writes, as patterns apart by spaces.
        flags: what makes it small.
        prints: text of its output.
        before: what the user does before it.
        launcher: program that starts it in processes of their own; default: it runs in this one.
        printed: whether a page has it; else it makes what a page supposes.
    """

    command: str
    leaves: str = ""
    flags: str = ""
    prints: str = ""
    before: Callable[[], object] | None = None
    launcher: str = ""
    printed: bool = True


def fitted(folder: str) -> str:
    return f"{folder}/results.json {folder}/pruner/config.json {folder}/pruner/*.safetensors"


def suite(folder: str, *tasks: str) -> str:
    return " ".join([f"{folder}/suite.json", *(f"{folder}/predictions/{task}.0.jsonl" for task in tasks)])


JUDGED = Step(
    "score runs/free_form/test_0/predictions --judge replies.jsonl",
    prints="'score': 0.5",
    before=lambda: write_replies(Path("runs/free_form/test_0/predictions"), Path("replies.jsonl")),
)

STAND_INS = (
    f"{RELEASED} --backbone models/Qwen2.5-VL-7B-Instruct --dtype float32 --yes --limit 2 --data.max_new_tokens 2"
)
"""What makes `reproduce` a rehearsal."""


def reproduced(table: str, more: str = "", flags: str = "") -> Step:
    return Step(f"reproduce {table}{more}", f"runs/reproduce/{table}/reproduction.md", f"{STAND_INS} {flags}".strip())


CHAPTERS = {
    "first": [
        Step(
            "predict --config methods/fastv --vars.retention 0.25 --image docs/images/question.png"
            ' --question "what is drawn in cyan"',
            "runs/fastv/predict_0/answers.jsonl runs/fastv/predict_0/overlays/*.png",
            prints="Kept 64 of 256 visual tokens (25.0%)",
        ),
        Step("test --config eval/quick --limit 50", suite("runs/quick/test_0", "glyph_vqa"), SUITE),
        Step("fit --config recipes/vip_kl.yaml", fitted("runs/vip_kl/fit_0"), TINY),
        Step(
            "ablate --config ablations/methods --pruner runs/vip_kl/fit_0/pruner",
            "runs/ablations/methods/results.md runs/ablations/methods/vip*/test_0/results.json",
            "--limit 1",
        ),
        Step(
            "publish runs/vip_kl/fit_0 --repo me/vip-kl --output upload",
            "upload/README.md upload/config.json upload/*.safetensors",
            prints="hf upload me/vip-kl upload",
        ),
    ],
    "evaluation": [
        Step("test --config eval/quick", suite("runs/quick/test_0", "glyph_vqa"), SUITE),
        Step(
            "test --config eval/quick --model.after_layer 1 --model.scorer AttentionRank --model.policy TopK"
            " --model.policy.count 20",
            suite("runs/quick/test_1", "glyph_vqa"),
            SUITE,
        ),
        Step(
            'test --config eval/documents --data.tasks "[docvqa_val, infovqa_val]" --data.places.data_dir data',
            suite("runs/documents/test_0", "docvqa_val", "infovqa_val"),
            SUITE,
        ),
        Step("test --config recipes/dense.yaml", "runs/dense/test_0/results.json", TEST),
        Step("fit --config recipes/dense_attribution.yaml", fitted("runs/dense_attribution/fit_0"), TINY),
    ],
    "command line": [
        Step("fit --config vip_kl --model.after_layer 2 --model.optimizer.lr 3e-4", fitted("runs/vip_kl/fit_0"), TINY),
        Step(
            "fit --config vip_kl --model.policy KeepRatio --model.policy.ratio 0.1", fitted("runs/vip_kl/fit_1"), TINY
        ),
        Step(
            "fit --config vip_kl --seed_everything 1 --trainer.default_root_dir /big/disk/runs",
            fitted("big/disk/runs/vip_kl/fit_0"),
            TINY,
        ),
    ],
    "own data": [
        Step(
            "fit --config vip_kl --data.train mine/train.jsonl --data.val mine/val.jsonl --data.test mine/test.jsonl",
            fitted("runs/vip_kl/fit_0"),
            TINY,
        ),
        Step(
            "predict --config methods/fastv --backbone Qwen/Qwen2.5-VL-7B-Instruct --model.max_new_tokens 64 --image"
            ' mine/photos --question "What is written on the sign?"',
            "runs/fastv/predict_0/answers.jsonl runs/fastv/predict_0/overlays/*.png",
            "--trainer.accelerator cpu --model.max_new_tokens 2",
            prints="(2 answers)",
        ),
        Step(
            "ablate --config mine/compare.yaml",
            "runs/ablations/compare/results.md runs/ablations/compare/fastv-retention_0.11/test_0/results.json",
            "--limit 1",
            prints="| methods | retention 0.33 | retention 0.11 | at its own share |",
            before=lambda: Path("mine/compare.yaml").write_text(code("ablate.md", "yaml")[1]),
        ),
        Step(
            "test --config methods/random --model.scorer my_pruners.SalientCentre",
            "runs/random/test_0/results.json",
            TEST,
            before=lambda: Path("my_pruners.py").write_text(code("plug_in_a_scorer.md")[0]),
        ),
    ],
    "a method's own code": [
        Step(
            "test --config mine/their_method.yaml",
            "runs/their_method/test_0/results.json",
            TEST,
            before=lambda: [
                Path("their_code.py").write_text(code("authors_code.md")[0]),
                Path("mine/their_method.yaml").write_text(code("authors_code.md", "yaml")[0]),
            ],
        ),
        Step("golden record their_code.select --output divprune.safetensors", "divprune.safetensors"),
        Step(
            "golden check divprune.safetensors --config methods/divprune",
            prints="24 of 24 selections of their_code.select are the same in methods/divprune.",
        ),
    ],
    "reinforcement learning": [
        Step(
            "fit --config vip_kl --vars.retention 0.05 --trainer.default_root_dir runs/tight",
            fitted("runs/tight/vip_kl/fit_0"),
            TINY,
        ),
        Step(
            "fit --config vip_grpo",
            fitted("runs/vip_grpo/fit_0") + " runs/vip_grpo/fit_0/model/*.safetensors",
            f"{TINY} --model.objective.group_size 2 --model.objective.max_new_tokens 2",
        ),
        Step("fit --config vip_sft", fitted("runs/vip_sft/fit_0") + " runs/vip_sft/fit_0/model/*.safetensors", TINY),
    ],
    "GlimpsePrune+": [
        Step(
            "fit --config qwen2_5_vl_7b/lora_grpo",
            "runs/qwen2_5_vl_7b/lora_grpo/fit_0/results.json runs/qwen2_5_vl_7b/lora_grpo/fit_0/adapter/*.safetensors",
            f"{FIT} --model.objective.max_new_tokens 2 --vars.judge JUDGE",
        ),
        Step(
            "export --merge-lora runs/qwen2_5_vl_7b/lora_grpo/fit_0/adapter --output models/merged",
            "models/merged/config.json models/merged/*.safetensors",
        ),
        Step("fit --config qwen2_5_vl_7b/vip_plus", fitted("runs/qwen2_5_vl_7b/vip_plus/fit_0"), FIT),
    ],
    "scale": [
        Step(
            "fit --config qwen2_5_vl_7b/vip_kl --config trainer/fsdp2 --trainer.devices 8",
            fitted("runs/qwen2_5_vl_7b/vip_kl/fit_0"),
            f"{FIT} --trainer.devices 2",
            launcher="python -m glimpse_lightning",
        ),
        Step(
            "fit --config qwen2_5_vl_7b/vip_kl --config trainer/fsdp2 --trainer.num_nodes 2 --trainer.devices 8",
            fitted("runs/vip_kl/fit_a"),
            f"{FIT} --trainer.num_nodes 1 --trainer.devices 1",
            launcher="env GLIMPSE_RUN_FOLDER=runs/vip_kl/fit_a python -m torch.distributed.run --standalone"
            " --nproc-per-node 1 -m glimpse_lightning",
        ),
        Step(
            f"test --config eval/documents {QWEN} --pruner runs/qwen2_5_vl_7b/vip_kl/fit_0/pruner",
            suite("runs/documents/test_0", "docvqa_val", "infovqa_val", "textvqa_val", "chartqa"),
            COPIED,
        ),
        Step("score runs/documents/test_0/predictions", prints="mean of tasks"),
    ],
    "reproduction": [
        Step("fit --config qwen2_5_vl_7b/vip_mask", fitted("runs/qwen2_5_vl_7b/vip_mask/fit_0"), FIT),
        Step(
            f"test --config eval/free_form {QWEN} --pruner runs/qwen2_5_vl_7b/vip_mask/fit_0/pruner",
            suite("runs/free_form/test_0", "visual_cot__cub"),
            SUITE,
        ),
        JUDGED,
        Step(
            "export --format upstream --pruner runs/qwen2_5_vl_7b/vip_mask/fit_0/pruner"
            " --base /models/Qwen2.5-VL-7B-Instruct --output gp",
            "gp/config.json gp/new_modules_gp.pt",
        ),
        Step("export --format glimpse --pruner gp --output ours", "ours/config.json ours/*.safetensors"),
        Step(
            "export --format upstream --pruner gp --output GlimpsePrune_Qwen2.5-VL-7B-Instruct",
            "GlimpsePrune_Qwen2.5-VL-7B-Instruct/new_modules_gp.pt",
            printed=False,
        ),
        Step(
            f"test --config eval/free_form {QWEN} {RELEASED}", suite("runs/free_form/test_1", "visual_cot__cub"), SUITE
        ),
        Step(
            f"test --config eval/short_form {QWEN} {RELEASED}", suite("runs/short_form/test_0", "gqa", "pope"), COPIED
        ),
        Step(
            "score runs/short_form/test_0/predictions/pope.0.jsonl --metric POPE --option reading=llava", prints="pope"
        ),
        Step(
            f'test --config eval/documents {QWEN} {RELEASED} --data.tasks "[docvqa_val]" --limit 100',
            suite("runs/documents/test_0", "docvqa_val"),
            COPIED,
        ),
        reproduced("free_form", " --judge http://localhost:8000/v1", "--judge JUDGE"),
        reproduced("free_form_capped"),
        reproduced("short_form", flags=f"--data.places.data_dir {COPIES}"),
        reproduced("efficiency", flags=f"--data.places.data_dir {COPIES}"),
    ],
    "LLaVA": [
        Step("fit --config llava_1_5_7b/vip_mask", fitted("runs/llava_1_5_7b/vip_mask/fit_0"), FIT, printed=False),
        Step(
            "export --format upstream --pruner runs/llava_1_5_7b/vip_mask/fit_0/pruner"
            " --output GlimpsePrune_LLaVA-1.5-7B",
            "GlimpsePrune_LLaVA-1.5-7B/new_modules_gp.pt",
            printed=False,
        ),
        Step(
            "test --config eval/free_form --backbone llava-hf/llava-1.5-7b-hf --model.dtype bfloat16"
            ' --model.processor "{do_pad: true}" --pruner GlimpsePrune_LLaVA-1.5-7B',
            suite("runs/free_form/test_0", "visual_cot__cub"),
            SUITE,
        ),
        JUDGED,
    ],
    "scores and benchmarks": [
        Step("test --config methods/fastv", "runs/fastv/test_0/predictions.jsonl", TEST, printed=False),
        Step("test --config methods/random", "runs/random/test_0/predictions.jsonl", TEST, printed=False),
        Step(
            "compare runs/random/test_0 runs/fastv/test_0 --flips 5 --output compare.md",
            "compare.md",
            prints="settings that differ",
        ),
        Step(
            "score predictions.jsonl --metric VQAAccuracy --output figures.json",
            "figures.json",
            before=lambda: shutil.copy("runs/fastv/test_0/predictions.jsonl", "."),
        ),
        Step(
            "bench --config bench/cpu --output bench.json",
            "bench.json bench.md bench.png",
            "--visual_tokens [16] --after_layers [1] --retention [0.11] --new_tokens 2 --warmup 0 --repetitions 2",
        ),
        Step(
            "bench --config bench/cpu --recipe methods/fastv --recipe methods/visionzip --output methods.json",
            "methods.json methods.md methods.png",
            "--visual_tokens [16] --retention [0.11] --new_tokens 2 --warmup 0 --repetitions 2",
        ),
        Step(
            "bench --config bench/training --output training.json",
            "training.json training.md",
            "--visual_tokens [16] --batch_sizes [1] --after_layers [2] --warmup 0 --repetitions 2",
        ),
    ],
}

STEPS = [(chapter, step) for chapter, steps in CHAPTERS.items() for step in steps]
PRINTED = [pytest.param(chapter, step, id=f"{chapter}-{step.command}") for chapter, step in STEPS if step.printed]


class Judge(BaseHTTPRequestHandler):
    """A server that gives every answer half a point."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"choices": [{"message": {"content": "score: 0.5"}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent."""


class User:
    """Gives the commands of chapters, each once, and keeps status and output.

    Args:
        root: folder of the chapters' folders.
        judge: address of a judge.
    """

    def __init__(self, root: Path, judge: str) -> None:
        self.root, self.judge = root, judge
        self.hub = write_hub(root / "hub")
        self.done: dict[tuple[str, str], tuple[int, str]] = {}

    def folder(self, chapter: str) -> Path:
        """The chapter's folder, which holds the user's own files."""
        folder = self.root / chapter
        if not folder.exists():
            folder.mkdir()
            write_inputs(folder, self.hub)
        return folder

    def give(self, chapter: str, last: Step, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
        """Status and output of a command, after those before it in its chapter."""
        for step in CHAPTERS[chapter]:
            if (chapter, step.command) not in self.done:
                if step.before is not None:
                    step.before()
                status = launched(step.launcher, self.words(step)) if step.launcher else main(self.words(step))
                said = capsys.readouterr()
                self.done[chapter, step.command] = status, said.out + said.err
            if step is last:
                break
        return self.done[chapter, last.command]

    def words(self, step: Step) -> list[str]:
        """The command line of a step."""
        text = f"{step.command} {step.flags}".replace("JUDGE", self.judge)
        for page, here in PLACES.items():
            text = text.replace(page, here)
        return shlex.split(text)


def launched(launcher: str, words: list[str]) -> int:
    """Exit status of a command in processes of its own; its output is printed."""
    start = [sys.executable if word == "python" else word for word in shlex.split(launcher)]
    done = subprocess.run([*start, *words], capture_output=True, text=True, timeout=200)
    print(done.stdout, done.stderr)
    return done.returncode


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    server = HTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield User(tmp_path_factory.mktemp("user"), f"http://127.0.0.1:{server.server_address[1]}/v1")
    server.shutdown()
    server.server_close()
    for name in ("my_pruners", "their_code"):
        sys.modules.pop(name, None)
    gc.collect()  # later tests do not find its scorer as a part


def enter(user: User, chapter: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The chapter's folder, which becomes the current one; downloads are those of the user's cache."""
    folder = user.folder(chapter)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(user.hub))
    monkeypatch.setenv("HF_HUB_CACHE", str(user.hub))  # for launched processes
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", user.root / "datasets")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)  # `ablate` takes two minutes where nothing else runs
@pytest.mark.parametrize(("chapter", "step"), PRINTED)
def test_a_command_does_what_its_page_says(
    chapter: str, step: Step, user: User, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = enter(user, chapter, monkeypatch)
    status, said = user.give(chapter, step, capsys)
    assert status == 0, said
    assert step.prints in said
    for pattern in step.leaves.split():
        assert [*folder.glob(pattern)], pattern


@pytest.mark.slow
def test_the_python_of_the_backbones_page_runs(
    user: User, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a CPU, with the cache and the exported pruner of the test's folder."""
    enter(user, "reproduction", monkeypatch)
    (export,) = [step for step in CHAPTERS["reproduction"] if step.command.endswith("--output gp")]
    user.give("reproduction", export, capsys)
    store(user.hub, "user/pruner", {"v1": gl.save_pruner(gl.load_pruner("gp"), user.root / "pruner")})
    loaded = gl.load_backbone("Qwen/Qwen2.5-VL-7B-Instruct")
    space = {"model": loaded.model, "processor": loaded.processor}
    blocks = [block for block in code("backbones.md") if "TextStreamer" not in block]  # test_docs.py runs that one
    assert len(blocks) == 4
    for block in blocks:
        for page, here in {
            '"cuda"': '"cpu"',
            "/data/hub": str(user.hub),
            "folder-with-new_modules_gp.pt": "gp",
        }.items():
            block = block.replace(page, here)
        exec(compile(block, "backbones.md", "exec"), space)
    assert isinstance(space["model"], gl.PrunedVLM)


def test_every_command_is_run() -> None:
    # tests/serving/test_server.py, tests/demo/test_in_browser.py and tests/ray_batch/test_cluster.py run them
    served = {command for command in COMMANDS if command.startswith(("serve ", "demo ", "batch "))}
    assert len(served) == 3
    assert sorted({*COMMANDS} - served) == sorted({step.command for _, step in STEPS if step.printed})


def test_every_command_is_known_by_what_it_leaves() -> None:
    assert not [step.command for _, step in STEPS if not step.leaves and not step.prints]
