"""Runs compared with a reference: differences question by question, changed answers, changed settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from glimpse_lightning.ablation.compared_runs import ComparedRun, run_names
from glimpse_lightning.ablation.statistics import holm, paired_difference, sign_flip_p
from glimpse_lightning.evaluation.intervals import Estimate
from glimpse_lightning.evaluation.predictions import Prediction
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.terminal import counted

RIGHT = 0.5
"""Least score of an answer that counts as right where answers are counted."""
ROUNDING = 1e-6
"""Largest difference of the scores of equal answers."""
ORIGIN = (
    "recipe", "command", "split", "commit", "dirty", "seed", "precision", "dtype", "processor", "devices",
    "after_layers", "image_processor", "generation_config", "versions",
)  # fmt: skip
"""Entries of ``results.json`` that are compared."""
NOISE = (
    "trainer.default_root_dir", "trainer.callbacks", "trainer.logger", "vars", "seed_everything", "trainer.precision",
    "model.baselines", "model.fit_baselines",
)  # fmt: skip
"""Settings that are not compared: places of files; variables, whose values stand where they are used; those that
``ORIGIN`` has; other models of a test."""


@dataclass(frozen=True)
class Pair:
    """A run and the reference, over the questions with references that both have.

    Attributes:
        name, reference_name: names of the two.
        run, reference: the two.
        names: the questions, in the reference's order.
    """

    name: str
    run: ComparedRun
    reference_name: str
    reference: ComparedRun
    names: Sequence[str]

    @cached_property
    def images(self) -> dict[str, str]:
        """Image of each question, by the run that knows it."""
        return {name: self.reference.images[name] or self.run.images[name] for name in self.names}

    @cached_property
    def differences(self) -> dict[str, float]:
        """Score minus the reference's."""
        return {name: self.run.scores[name] - self.reference.scores[name] for name in self.names}

    @cached_property
    def p(self) -> float:
        """P-value of the difference, without regard to other pairs."""
        return sign_flip_p([*self.differences.values()], [*self.images.values()])

    @property
    def difference(self) -> Estimate:
        """Mean difference over all questions."""
        return self._difference(self.names)

    @property
    def families(self) -> dict[str, Estimate]:
        """Mean difference over each family of questions; over each task of a suite."""
        groups: dict[str, list[str]] = {}
        for name in self.names:
            about = self.reference.predictions[name]
            groups.setdefault(about.task or about.family, []).append(name)
        return {family: self._difference(names) for family, names in sorted(groups.items()) if family}

    @property
    def lost(self) -> list[str]:
        """Questions that the reference answers right and the run wrong, the largest loss first."""
        found = [name for name in self.names if self._right(self.reference, name) and not self._right(self.run, name)]
        return sorted(found, key=self.differences.__getitem__)

    @property
    def won(self) -> list[str]:
        """Questions that the run answers right and the reference wrong, the largest gain first."""
        found = [name for name in self.names if self._right(self.run, name) and not self._right(self.reference, name)]
        return sorted(found, key=lambda name: -self.differences[name])

    def _difference(self, names: Sequence[str]) -> Estimate:
        run, reference = ({name: each.scores[name] for name in names} for each in (self.run, self.reference))
        found = paired_difference(run, reference, self.images)
        assert found is not None  # a pair has at least one question
        return found

    @staticmethod
    def _right(run: ComparedRun, name: str) -> bool:
        return run.scores[name] >= RIGHT

    @property
    def remarks(self) -> list[str]:
        """Ways in which the two are not about the same."""
        run, reference = self.run, self.reference
        splits = [each.results.get("split") for each in (run, reference)]
        digests = [each.data for each in (run, reference) if each.data is not None]
        sizes = [len(each.scores) for each in (run, reference)]
        other_data = len(digests) == 2 and digests[0] != digests[1]
        repainted = counted(self._repainted(), "question")
        remarks = {
            f"other split ({splits[0]} and {splits[1]})": splits[0] != splits[1],
            "other data by their digests, the common questions and references are the same": other_data,
            f"compared over the {counted(len(self.names), 'common question')} of {sizes[0]} and {sizes[1]}":
                {*run.scores} != {*reference.scores},
            f"other pixels in the images of {repainted}": self._repainted() > 0,
        }  # fmt: skip
        found = [remark for remark, holds in remarks.items() if holds]
        return [f"{self.name} and {self.reference_name}: {'; '.join(found)}."] if found else []

    def _repainted(self) -> int:
        """Number of questions whose images are known to both, and differ."""
        images = [{self.run.images[name], self.reference.images[name]} for name in self.names]
        return sum(len(each) == 2 and "" not in each for each in images)


@dataclass(frozen=True)
class Comparison:
    """Runs next to a reference.

    Attributes:
        names: short names of the runs.
        runs: the runs, the reference first.
        pairs: each other run with the reference.
    """

    names: Sequence[str]
    runs: Sequence[ComparedRun]
    pairs: Sequence[Pair]

    @property
    def images(self) -> int:
        """Number of known images that the compared questions are about."""
        return len({image for pair in self.pairs for image in pair.images.values()} - {""})

    @property
    def adjusted(self) -> list[float]:
        """P-values of the pairs, adjusted for their number."""
        return holm([pair.p for pair in self.pairs])

    def settings(self) -> dict[str, list[Any]]:
        """Values that differ between runs, by key, one for each run; ``None`` where it has none.

        Where a run has no configuration, those of the others are left out.
        """
        configured = all(run.config is not None for run in self.runs)
        found = [_settings(run if configured else replace(run, config=None)) for run in self.runs]
        keys = dict.fromkeys(key for each in found for key in each)
        rows = {key: [each.get(key) for each in found] for key in keys}
        contents = {f"contents of {path}": [run.inputs.get(path) for run in self.runs]
                    for path in dict.fromkeys(path for run in self.runs for path in run.inputs)}  # fmt: skip
        differing = {key: row for key, row in contents.items() if len({*map(str, row)} - {str(None)}) > 1}
        return {key: row for key, row in rows.items() if any(each != row[0] for each in row)} | differing


def compared(runs: Sequence[ComparedRun]) -> Comparison:
    """Runs compared with the first of them.

    Raises:
        GlimpseError: where there are fewer than two, one is there twice, or they cannot be paired question by question.
    """
    if len(runs) < 2:
        raise GlimpseError("Expected at least two runs to compare, but got one. Name the folder of another run.")
    paths = [run.path for run in runs]
    for path in paths:
        if paths.count(path) > 1:
            raise GlimpseError(f"{path}: this run was named twice. Name each run once; the first is the reference.")
    names = run_names(runs)
    pairs = [_pair(name, run, names[0], runs[0]) for name, run in zip(names[1:], runs[1:], strict=True)]
    return Comparison(names, runs, pairs)


def _pair(name: str, run: ComparedRun, reference_name: str, reference: ComparedRun) -> Pair:
    both = [each for each in reference.predictions if each in run.predictions]
    where = f"{name} and {reference_name}"
    if not both:
        raise GlimpseError(
            f"{where} have no question in common: their ids are {_first(run)} and {_first(reference)}, ... Test both "
            "on the same data (`--data.test`) and split."
        )
    for each in both:
        _check_same(where, each, run.predictions[each], reference.predictions[each])
    scored = [each for each in both if each in run.scores and each in reference.scores]
    if not scored:
        raise GlimpseError(
            f"{where} have no common question with a score, so that there is no accuracy to compare. Test them on data "
            "with answers."
        )
    return Pair(name, run, reference_name, reference, scored)


def _check_same(where: str, name: str, ours: Prediction, theirs: Prediction) -> None:
    for field in ("question", "references"):
        mine, other = getattr(ours, field), getattr(theirs, field)
        if mine != other:
            raise GlimpseError(
                f"{where} are about other data: question {name!r} has the {field} {_brief(mine)} in one, and "
                f"{_brief(other)} in the other. Test both on the same data (`--data.test`)."
            )
    scores = [each.score for each in (ours, theirs) if each.score is not None]
    if ours.prediction == theirs.prediction and max(scores, default=0) - min(scores, default=0) > ROUNDING:
        raise GlimpseError(
            f"{where} were scored in different ways: their answers to question {name!r} are equal, and have the scores "
            f"{ours.score:g} and {theirs.score:g}. Test both with the same `--model.metric`."
        )


def _first(run: ComparedRun) -> str:
    return repr(next(iter(run.predictions)))


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _settings(run: ComparedRun) -> dict[str, Any]:
    """Settings and origin of a run by dotted keys."""
    origin = flat({key: run.results.get(key) for key in ORIGIN})
    return origin | {key: value for key, value in flat(run.config).items() if not _is_noise(key)}


def _is_noise(key: str) -> bool:
    return any(f"{key}.".startswith(f"{each}.") for each in NOISE)


def flat(tree: Any, key: str = "") -> dict[str, Any]:
    """Values of a tree by dotted keys, those of classes as on the command line: without ``class_path`` and
    ``init_args``.

    ``None`` and what is empty are left out. A list is one value unless it holds mappings, whose keys it numbers.
    """
    if isinstance(tree, list) and any(isinstance(each, Mapping) for each in tree):
        tree = dict(enumerate(tree))
    if not isinstance(tree, Mapping):
        return {} if tree is None or tree == [] else {key: tree}
    found: dict[str, Any] = {}
    for name, value in tree.items():
        inner = key if name in ("class_path", "init_args") and key else f"{key}.{name}".removeprefix(".")
        found |= flat(value, inner)
    return found
