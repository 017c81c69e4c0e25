"""What the page of `demo` answers, without a browser: the model's own numbers, sentences, and no file of the server."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import glimpse_lightning as gl

pytest.importorskip("gradio")
from glimpse_lightning.demo.answers import FULL, Methods
from glimpse_lightning.demo.command import arguments, methods_of, name_of, run
from glimpse_lightning.demo.page import OWN, RETENTION, THRESHOLD, Asked, about, build, examples

ATTENTION, STAGES = "attention", "two stages"


def pruners() -> dict[str, gl.Pruner]:
    def stage(layer: int, policy: Any) -> gl.PruneStage:
        return gl.PruneStage(layer, gl.scorers.AttentionRank(), policy)

    return {
        ATTENTION: gl.Pruner([stage(1, gl.policies.KeepRatio(0.4))]),
        STAGES: gl.Pruner([stage(1, gl.policies.KeepRatio(0.5)), stage(3, gl.policies.KeepRatio(0.1))]),
    }


@pytest.fixture(scope="module")
def backbone() -> gl.backbones.Backbone:
    return gl.load_backbone("glimpse-tiny")


@pytest.fixture(scope="module")
def methods(backbone: gl.backbones.Backbone) -> Methods:
    return Methods(backbone, pruners(), max_new_tokens=16)


@pytest.fixture(scope="module")
def sample() -> gl.Sample:
    return gl.GlyphVQA("test", size=8)[0]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, sample: gl.Sample) -> str:
    file = tmp_path_factory.mktemp("uploads") / "page.png"
    sample.images[0].save(file)
    return str(file)


def test_every_row_is_what_the_model_answers_alone(methods: Methods, sample: gl.Sample) -> None:
    shown = methods.ask(sample.images[0], sample.question, [STAGES, ATTENTION])
    assert [each.method for each in shown] == [FULL, STAGES, ATTENTION]
    for each, pruner in zip(shown, (None, pruners()[STAGES], pruners()[ATTENTION]), strict=True):
        model = gl.PrunedVLM(methods.backbone, pruner)
        inputs = model.backbone.collate([gl.Sample(question=sample.question, images=sample.images)]).inputs
        out = model.prefill(**inputs)
        assert each.text == model.backbone.decode(model.generate(**inputs, max_new_tokens=16))[0]
        assert each.total == 256
        lefts = [int(out.kept(stages).sum()) for stages in range(1, len(out.keep) + 1)]
        assert [left for _, left in each.stages] == lefts
        assert [image.tobytes() for image in each.overlays] == [
            out.show(sample.images[0], stages=stages + 1).tobytes() for stages in range(len(lefts))
        ]


def test_a_budget_replaces_the_methods_own_and_one_that_has_none_says_so(methods: Methods, sample: gl.Sample) -> None:
    full, one, two = methods.ask(sample.images[0], sample.question, [ATTENTION, STAGES], retention=0.1)
    assert full.counts is not None and full.counts.flops == 1
    assert one.stages == [(1, 25)]
    assert two.failed and "for each of the pruner's 2 stages" in two.text
    _, one = methods.ask(sample.images[0], sample.question, [ATTENTION], threshold=0.5)
    assert one.failed and "threshold" in one.text
    with pytest.raises(gl.GlimpseError, match="Expected a method out of attention, two stages"):
        methods.ask(sample.images[0], sample.question, ["vip"])


def test_tables_and_pictures(methods: Methods, sample: gl.Sample, path: str) -> None:
    asked = Asked(methods)
    first, second, pictures = asked(path, sample.question, "what holds M", [STAGES], RETENTION, 0.1)
    assert "for each of the pruner&#x27;s 2 stages" in first and "what holds M" in second
    assert pictures == []
    first, second, pictures = asked(path, sample.question, " ", [ATTENTION, STAGES], OWN, 0.1)
    assert sample.answers[0] in first and second == ""
    assert [caption.partition(":")[0] for _, caption in pictures] == [
        "attention, after layer 1", "two stages, after layer 1", "two stages, after layer 3",
    ]  # fmt: skip
    assert "102 of 256 (39.8%)" in first


@pytest.mark.parametrize("budget", [RETENTION, THRESHOLD])
def test_what_a_visitor_has_to_mend_gets_a_sentence(methods: Methods, path: str, tmp_path: Path, budget: str) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(path).read_bytes()[:500])
    asked = Asked(methods)
    for arguments_, said in (
        ((None, "what", ""), "There is no picture yet"),
        ((path, " ", "\n"), "There is no question yet"),
        ((str(broken), "what", ""), "The picture: "),
        ((path, "look at <|image_pad|>", ""), "image_pad"),
    ):
        first, second, pictures = asked(*arguments_, [ATTENTION], budget, 0.5)
        assert said in first and first.startswith("<p role='alert'>")
        assert (second, pictures) == ("", [])


def test_texts_are_escaped(methods: Methods, path: str) -> None:
    first, *_ = Asked(methods)(path, "<img src=x onerror=alert(1)>", "", [ATTENTION], OWN, 0.5)
    assert "<img" not in first and "&lt;img" in first


@pytest.fixture(scope="module")
def address(methods: Methods) -> Iterator[str]:
    page = build(methods, "glimpse-tiny")
    _, address, _ = page.launch(quiet=True, prevent_thread_lock=True, ssr_mode=False, share=False)
    yield address.rstrip("/")
    page.close()


def test_no_file_of_the_server_is_read(address: str, tmp_path: Path, sample: gl.Sample) -> None:
    sample.images[0].save(tmp_path / "private.png")
    for file in (tmp_path / "private.png", Path("setup.cfg").resolve()):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{address}/gradio_api/file={file}")
    for source in (str(tmp_path / "private.png"), f"{tmp_path}/../{tmp_path.name}/private.png", "http://127.0.0.1:9/a"):
        given = {"path": source, "meta": {"_type": "gradio.FileData"}}
        inputs = [given, sample.question, "", [ATTENTION], OWN, 0.5]
        body = json.dumps({"data": inputs, "fn_index": 0, "session_hash": "s"}).encode()
        request = urllib.request.Request(f"{address}/gradio_api/queue/join", body, {"content-type": "application/json"})
        urllib.request.urlopen(request)
        with urllib.request.urlopen(f"{address}/gradio_api/queue/data?session_hash=s", timeout=60) as lines:
            last = next(line for line in lines if b"process_completed" in line)
        assert b'"success":false' in last and sample.answers[0].encode() not in last


def test_pages_of_the_models_own_bench_are_offered_and_said(backbone: gl.backbones.Backbone) -> None:
    for name in ("glimpse-tiny", "glimpse-dense", "glimpse-llava"):
        assert len(examples(name)) == 3
        assert "nothing else" in about(name)
    assert examples("me/model") == [] and "me/model" in about("me/model")


def test_methods_of_a_command_line(tmp_path: Path) -> None:
    pruner = pruners()[ATTENTION]
    model = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), pruner)
    gl.save_pruner(pruner, tmp_path / "mine" / "pruner", model.backbone)
    line = ["--recipe", "methods/random", "--pruner", str(tmp_path / "mine" / "pruner")]
    assert methods_of(arguments().parse_args(line)).names == ["random", "mine"]
    assert name_of("me/name", []) == "name" and name_of("me/name", ["name"]) == "me/name"
    assert name_of("mine/fastv.yaml", []) == "fastv" and name_of("mine/fastv.yaml", ["fastv"]) == "mine/fastv.yaml"


def test_a_port_that_is_taken_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(gl.GlimpseError, match=rf"Cannot listen on 127\.0\.0\.1:{port}.*--port 0"):
            run(["--recipe", "methods/random", "--port", str(port)])
