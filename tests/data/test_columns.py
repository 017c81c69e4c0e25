from __future__ import annotations

import pytest

from glimpse_lightning.data.tables.columns import Columns, Wording, answer_texts, is_missing, question_text
from glimpse_lightning.data.tables.rows import unique_names
from glimpse_lightning.runtime.errors import BadSampleError


def test_wording() -> None:
    row = {"question": " What IS it? Say yes.", "hint": None}
    wording = Wording(suffix="\nBriefly.", capitalize=True, drop=" Say yes.")
    assert question_text(row, Columns(hint="hint"), wording, "x") == "What is it?\nBriefly."
    with_hint = Wording("{hint}{question}", hint="Context: {hint}\n")
    row["hint"] = "a {curly} hint"
    assert question_text(row, Columns(hint="hint"), with_hint, "x").startswith("Context: a {curly} hint\nWhat IS")


def test_options_in_the_question() -> None:
    row = {"question": "Which side? (A) left (B) the right one\n(C) none."}
    text = question_text(row, Columns(), Wording(inline_options=True), "x")
    assert text == "Which side?\nA. left\nB. the right one\nC. none."


@pytest.mark.parametrize(
    ("value", "expected"),
    [("a", ["a"]), (3, ["3"]), (["a", "b"], ["a", "b"]), ([{"answer": "a", "answer_id": 1}], ["a"]),
     ('["a", "b"]', ["a", "b"]), ("[sic]", ["[sic]"])],
)  # fmt: skip
def test_kinds_of_answers(value: object, expected: list[str]) -> None:
    assert answer_texts({"answers": value}, Columns(), "x") == expected


@pytest.mark.parametrize(("right", "letter"), [(1, "B"), ("1", "B"), ("B", "B"), (0, "A")])
def test_multiple_choice_answers_name_the_options(right: object, letter: str) -> None:
    row = {"answers": right, "A": "red", "B": "blue", "C": "nan", "D": None}
    columns = Columns(options=["A", "B", "C", "D"])
    assert answer_texts(row, columns, "x") == [letter, "A. red", "B. blue"]
    with pytest.raises(BadSampleError, match="one of A, B, but got 'C'"):
        answer_texts({**row, "answers": "C"}, columns, "x")


def test_further_options_keep_their_letters_and_may_be_missing() -> None:
    columns = Columns(options=["A", "B"], more_options=["C", "D", "E"])
    row = {"answers": "E", "A": "red", "B": "blue", "C": None, "D": "nan", "E": "green"}
    assert answer_texts(row, columns, "x") == ["E", "A. red", "B. blue", "E. green"]
    assert answer_texts({**row, "answers": 4}, columns, "x")[0] == "E"
    assert answer_texts({"answers": "B", "A": "red", "B": "blue"}, columns, "x") == ["B", "A. red", "B. blue"]
    assert columns.names() == ["question", "answers", "image", "A", "B"]
    with pytest.raises(BadSampleError, match="one of A, B, E, but got 'D'"):
        answer_texts({**row, "answers": "D"}, columns, "x")


def test_words_that_were_read_stand_where_the_prompt_says() -> None:
    row = {"question": "What brand?", "words": ["dakota", "5"]}
    wording = Wording("{question}{ocr}", suffix="\nBriefly.")
    assert question_text(row, Columns(), wording, "x") == "What brand?\nBriefly."
    shown = "What brand?\nReference OCR token: dakota, 5\nBriefly."
    assert question_text(row, Columns(ocr="words"), wording, "x") == shown


def test_missing_answers() -> None:
    with pytest.raises(BadSampleError, match=r"x: .*require_answers: false"):
        answer_texts({"answers": None}, Columns(), "x")
    assert answer_texts({"answers": []}, Columns(), "x", required=False) == []
    assert answer_texts({}, Columns(answers=None), "x") == []
    assert [is_missing(value) for value in (None, float("nan"), "", " nan ", 0, "none")] == [True] * 4 + [False] * 2


def test_names_that_occur_twice_are_numbered() -> None:
    assert unique_names(["a", "b", "a"]) == ["a#0", "b", "a#1"]
    found = unique_names(["a", "a", "a#0", "a#1", "b", "b", "b#1"])
    assert len(set(found)) == 7
    assert (found[2], found[3], found[6]) == ("a#0", "a#1", "b#1")


def test_the_other_usual_names_are_taken_where_nothing_was_said() -> None:
    assert Columns().in_table(["question", "answer", "images"]) == Columns(answers="answer", image="images")
    assert Columns().in_table(["question", "answer", "answers", "image"]) == Columns()
    assert Columns(answers=None).in_table(["question", "answer", "image"]) == Columns(answers=None)
    assert Columns(answers="label").in_table(["question", "answer", "image"]) == Columns(answers="label")
    assert Columns().in_table(["question", "image"]) == Columns()
