from __future__ import annotations

from glimpse_lightning.ablation.latex import best_and_ties, escaped, origin, tabular
from glimpse_lightning.evaluation.intervals import Estimate


def test_special_characters_are_escaped() -> None:
    assert escaped("a_b & 5%") == r"a\_b \& 5\%"
    assert escaped("\\{") == r"\textbackslash{}\{"
    assert escaped("<|> ~ ^ $ #") == r"\textless{}\textbar{}\textgreater{} \textasciitilde{} \textasciicircum{} \$ \#"
    assert escaped("two\nlines") == "two lines"


def test_the_comment_is_one_line() -> None:
    line = origin("compare", ["a b", "x\ny"])
    assert line.startswith("% glimpse-lightning compare 'a b' 'x y' (glimpse-lightning ")
    assert "commit" in line and "\n" not in line


def test_best_and_ties() -> None:
    gains = {1: Estimate(-0.1, -0.2, 0.0, 9), 2: Estimate(-0.2, -0.3, -0.1, 9), 4: None}
    assert best_and_ties([0.9, 0.8, 0.7, None, 0.6], lambda place, best: gains[place]) == {0, 1}
    assert best_and_ties([None, None], lambda place, best: None) == set()
    assert best_and_ties([0.5, 0.5], lambda place, best: None) == {0, 1}  # equal figures, also of rows without scores


def test_a_table() -> None:
    text = tabular(
        ["run", "gain", "none"],
        [["a_1", "-1.0 [-2.0, +0.5]", "-"], ["-3 b", "-", "-"], ["[0, 1]", "1", "-"]],
        {(0, 1)},
        "% made",
    )
    assert text.startswith("% made\n")
    assert r"a\_1 & \textbf{$-$1.0 [$-$2.0, +0.5]} \\" in text
    assert r"-3 b & -- \\" in text  # a name is no figure; a column without figures is left out
    assert "\n{}[0, 1] & 1 " in text
    assert r"\begin{tabular}{lr}" in text
