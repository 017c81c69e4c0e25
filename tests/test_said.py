"""What is said is done, or refused by name: variables, texts, keywords, old spellings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from runs import SMALL, write_recipe

import glimpse_lightning as gl
from glimpse_lightning.cli import main
from glimpse_lightning.cli.recipe_files import check_vars, texts_aside
from glimpse_lightning.data.one_question import OneQuestion
from glimpse_lightning.data.tables.columns import Columns, Wording, question_text


def fails(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(args) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", [["--vars.retentoin", "0.05"], ["--vars.retentoin=0.05"], ["--vars", "{retentoin: 0.05}"]]
)
def test_a_variable_that_nothing_reads(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path)
    said = fails(["fit", "--config", str(recipe), *flags, "--print_config"], capsys)
    assert "Nothing reads `vars.retentoin`" in said and "Did you mean retention?" in said


def test_variables_of_recipes(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    check_vars(["--vars.retention", "0.2"], [recipe])
    check_vars(["--vars.mine", "3", "--model.after_layer", "${vars.mine}"], [recipe])
    more = SMALL.replace("vars: {retention: 0.1}", "vars: {retention: 0.1, spare: 1}")
    other = write_recipe(tmp_path, more, "other.yaml")
    with pytest.raises(gl.GlimpseError, match=r"Nothing reads `vars\.spare`"):
        check_vars([], [other])
    resolved = tmp_path / "config.yaml"  # as a run leaves it
    resolved.write_text("vars: {retention: 0.1}\nmodel: {objective: {init_args: {retention: 0.1}}}\n")
    check_vars([], [resolved])
    with pytest.raises(gl.GlimpseError, match=r"no \$\{vars\.retention\}"):
        check_vars(["--vars.retention", "0.2"], [resolved])


QUESTIONS = ["#5 which is it", "null", "1e3", "${x}", "&b", "~", "a: b", "[1, 2]", "'", '"', "\\", "π\n?", "yes", "- x"]


def test_a_persons_words_are_not_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gl.GlyphVQA("test", 1, image_size=224)[0].images[0].save(tmp_path / "a.png")
    asked: list[str] = []

    def ask(groups: list[list[str]], question: str) -> OneQuestion:
        asked.append(question)
        return OneQuestion(groups, question)

    monkeypatch.setattr("glimpse_lightning.cli.trainer_runs.OneQuestion", ask)
    monkeypatch.setattr("lightning.pytorch.Trainer.predict", lambda *_, **__: None)
    for index, question in enumerate(QUESTIONS):
        spellings = ["--question", question], [f"--question={question}"]  # each is run for every other question
        named = ["--question", "__text_0__"], ["--question=__text_0__"]
        assert [texts_aside(spelling) for spelling in spellings] == [(name, {"__text_0__": question}) for name in named]
        flags = ["--config", "attention_rank", "--trainer.default_root_dir", str(tmp_path)]
        assert main(["predict", *flags, "--image", str(tmp_path / "a.png"), *spellings[index % 2]]) == 0
    assert asked == QUESTIONS
    assert texts_aside(["--limit", "3", "--other", "null"]) == (["--limit", "3", "--other", "null"], {})


def test_braces_in_a_wording_are_refused_when_it_is_written() -> None:
    for text in ('{question} {"box": [x]}', "{question} {", "{question} {answer}", "{}"):
        with pytest.raises(gl.GlimpseError, match=r"`wording\.prompt`.*Write \{\{ and \}\}"):
            Wording(prompt=text)
    wording = Wording(prompt='{question} {{"box": [x]}}')
    row = {"question": "q", "answers": "a"}
    assert question_text(row, Columns(), wording, "row 0") == 'q {"box": [x]}'


def test_unknown_keywords_of_prefill() -> None:
    backbone = gl.load_backbone("glimpse-tiny")
    model = gl.PrunedVLM(backbone)
    batch = backbone.collate([gl.GlyphVQA("test", image_size=224)[0]])
    model.prefill(**batch.inputs)
    for name, near in {"retenshun": "retention", "question": "questions", "pixel_value": "pixel_values"}.items():
        with pytest.raises(gl.GlimpseError, match=rf"does not know '{name}'.*{near}"):
            model.prefill(**batch.inputs, **{name: 0.1})


def test_the_spelling_before_transformers_5() -> None:
    assert gl.load_backbone("glimpse-tiny", torch_dtype="bfloat16").model.dtype == torch.bfloat16
    assert gl.load_backbone("glimpse-tiny", torch_dtype=torch.float32).model.dtype == torch.float32
    with pytest.raises(gl.GlimpseError, match="`dtype` or `torch_dtype`"):
        gl.load_backbone("glimpse-tiny", dtype="float16", torch_dtype="bfloat16")


def test_config_yaml_is_not_a_runs_name_alone(tmp_path: Path) -> None:
    from glimpse_lightning.cli.recipe_files import recipe_name

    for place, name in {"p1/config.yaml": "p1", "runs/vip/fit_3/config.yaml": "vip", "x/vip.yaml": "vip"}.items():
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"model": {}}))
        assert recipe_name([path]) == name
