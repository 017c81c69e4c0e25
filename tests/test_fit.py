"""The main job at a small size, through the real command line: what it leaves, how it resumes, how it fails."""

from __future__ import annotations

import errno
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from PIL import Image
from runs import SMALL, run, scalars, write_recipe
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

import glimpse_lightning as gl
from glimpse_lightning.callbacks import RunCheckpoints
from glimpse_lightning.callbacks.results_writer import COLUMNS
from glimpse_lightning.objectives import KL
from glimpse_lightning.runtime.run_folder import saved_checkpoints
from glimpse_lightning.training.module import PruningModule


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe, and the root of its finished fit."""
    folder = tmp_path_factory.mktemp("fit")
    recipe, root = write_recipe(folder), folder / "runs"
    assert run("fit", recipe, root) == 0
    return recipe, root


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--model.objective", "null"), "got none; evaluate this recipe with `test`"),
        (("--model.scorer", "Random"), "Nothing to train.*evaluate this recipe with `test`"),
        (("--data.train", "null"), "Expected `data.train` to name a dataset"),
    ],
)
def test_a_fit_that_can_train_nothing_leaves_no_folder(
    tmp_path: Path, flags: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", write_recipe(tmp_path), tmp_path / "runs", *flags) == 1
    assert re.search(said, capsys.readouterr().err)
    assert not list((tmp_path / "runs").iterdir())


def test_looking_whether_a_fit_learns_draws_no_weights() -> None:
    module = PruningModule(
        after_layer=1, scorer=gl.scorers.VIP(), policy=gl.policies.Threshold(), objective=KL(retention=0.1)
    )
    before = torch.get_rng_state()
    module.check_fit()
    assert torch.equal(torch.get_rng_state(), before)


def test_what_a_run_leaves(fitted: tuple[Path, Path]) -> None:
    recipe, root = fitted
    folder = root / "small" / "fit_0"
    assert (folder / "recipe.yaml").read_text() == recipe.read_text()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["objective"]["init_args"]["retention"] == 0.1  # resolved
    results = json.loads((folder / "results.json").read_text())
    expected = {"recipe": "small", "command": "fit", "backbone": "glimpse-tiny", "seed": 0, "dataset": "GlyphVQA"}
    assert {name: results[name] for name in expected} == expected
    assert (results["split"], results["n"]) == ("test", 7)
    metrics = results["metrics"]
    for name in ("retention", "accuracy", "full_accuracy", "relative_accuracy", "random_relative_accuracy"):
        assert name in metrics
    assert metrics["random_retention"] >= metrics["retention"] > 0
    assert metrics["kl"] >= 0
    assert "asked for" in results["remarks"][-1]  # eight steps do not bring it to 10 %
    assert set(results["families"]) >= {"read", "list"}
    assert results["wall_time_s"] > 0
    assert results["command_line"].startswith("glimpse-lightning fit --config /")
    assert datetime.now(UTC) - datetime.fromisoformat(results["date"]) < timedelta(minutes=10)
    assert (results["commit"] is None) == (results["dirty"] is None)
    assert set(results["machine"]) == {"host", "system", "cores", "threads", "memory_gib"}
    assert {name: data["rows"] for name, data in results["data"].items()} == {"train": 64, "val": 3, "test": 7}
    assert set(results["versions"]) == {"python", "glimpse-lightning", "torch", "transformers", "lightning"}
    assert len((folder / "predictions.jsonl").read_text().splitlines()) == 7
    assert len(list((folder / "overlays").glob("*.png"))) == 2
    assert not [path for path in folder.rglob(".*") if path.name != ".lock"]  # no drafts


def test_events_hold_scalars_images_histograms_and_hparams(fitted: tuple[Path, Path]) -> None:
    folder = fitted[1] / "small" / "fit_0"
    logged = scalars(folder)
    for tag in ("train/loss", "train/kl", "train/budget", "train/retention", "train/soft_hard_gap"):
        assert sorted(logged[tag]) == list(range(8)), tag
    assert {"val/accuracy", "val/retention", "val/kl", "test/retention", "hp/accuracy"} <= set(logged)
    tags: dict[str, set[str]] = {"images": set(), "histograms": set()}
    for file in folder.glob("events.*"):
        events = EventAccumulator(str(file))
        events.Reload()
        for kind, found in tags.items():
            found.update(events.Tags()[kind])
    assert {"val_kept/0", "test_kept/1"} <= tags["images"]
    assert {"val_retention/all", "test_retention/read"} <= tags["histograms"]


def test_checkpoints_hold_trained_parameters_only(fitted: tuple[Path, Path]) -> None:
    paths = saved_checkpoints(fitted[1] / "small" / "fit_0" / "checkpoints")
    assert [path.name for path in paths] == ["step=000006.ckpt", "step=000008.ckpt"]
    checkpoint = torch.load(paths[-1], weights_only=True)
    assert checkpoint["state_dict"]
    assert all(name.startswith("vlm.pruner.") for name in checkpoint["state_dict"])
    assert paths[-1].stat().st_size < 2_000_000


def test_the_saved_pruner_is_the_trained_one(fitted: tuple[Path, Path]) -> None:
    folder = fitted[1] / "small" / "fit_0"
    trained = torch.load(saved_checkpoints(folder / "checkpoints")[-1], weights_only=True)["state_dict"]
    loaded = gl.load_pruner(folder / "pruner")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, trained[f"vlm.pruner.{name}"])


def test_test_makes_the_table_with_the_fitted_weights(
    fitted: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, root = fitted
    assert run("test", recipe, root) == 0
    printed = capsys.readouterr().out
    for name in ("full", "pruned", "AttentionRank", "FixedRatio", "Random"):
        assert name in printed
    assert printed.rstrip().endswith(f"Run folder: {root / 'small' / 'test_0'}")
    results = json.loads((root / "small" / "test_0" / "results.json").read_text())
    assert (results["n"], results["command"]) == (9, "test")
    for name in ("attention_rank", "fixed_ratio", "random"):
        difference = results["metrics"][f"{name}_retention"] - results["metrics"]["retention"]
        assert 0 <= difference < 1 / 64  # the same mean, rounded up to a whole one of 64 tokens
    at_fit = json.loads((root / "small" / "fit_0" / "predictions.jsonl").read_text().splitlines()[0])
    at_test = json.loads((root / "small" / "test_0" / "predictions.jsonl").read_text().splitlines()[0])
    assert at_fit.pop("kl") == pytest.approx(at_test.pop("kl"), rel=1e-3)  # in other batches, on some processors
    assert at_fit == at_test


def test_flags_beat_config_beats_checkpoint(fitted: tuple[Path, Path]) -> None:
    recipe, root = fitted
    checkpoint = saved_checkpoints(root / "small" / "fit_0" / "checkpoints")[-1]
    text = "model: {policy: {class_path: Threshold, init_args: {threshold: 0.6}}}"
    other = write_recipe(recipe.parent, text, "o.yaml")
    data = ("--data.val", "GlyphVQA", "--data.val.split=val", "--data.val.size=2", "--data.val.image_size=224")
    ask = ("--ckpt_path", str(checkpoint), "--data.num_workers=0", *data)

    def policy(number: int) -> dict[str, Any]:
        config = yaml.safe_load((root / "o" / f"validate_{number}" / "config.yaml").read_text())
        assert config["model"]["scorer"]["init_args"]["attention_dim"] == 16  # only the checkpoint says so
        return config["model"]["policy"]["init_args"]

    assert run("validate", other, root, *ask, "--model.policy.min_tokens", "5") == 0
    assert (policy(0)["threshold"], policy(0)["min_tokens"]) == (0.6, 5)
    assert run("validate", other, root, *ask, "--model.policy.threshold", "1.0", "--model.policy.min_tokens", "5") == 0
    assert policy(1)["threshold"] == 1.0
    results = json.loads((root / "o" / "validate_1" / "results.json").read_text())
    assert results["metrics"]["retention"] == 5 / 64  # the flag was not only written down
    assert results["split"] == "val"


def test_predict_answers_a_question_on_the_spot(fitted: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, root = fitted
    image = tmp_path / "photo.jpg"
    Image.new("RGB", (300, 200), "white").save(image)
    assert run("predict", recipe, root, "--image", str(image), "--question", "what is this") == 0
    (line,) = (root / "small" / "predict_0" / "answers.jsonl").read_text().splitlines()
    answer = json.loads(line)
    assert (answer["id"], answer["question"]) == ("photo", "what is this")
    assert 0 < answer["kept"] <= answer["total"]
    (overlay,) = (root / "small" / "predict_0" / "overlays").glob("photo*.png")
    assert Image.open(overlay).size[1] > 200


def test_an_image_needs_a_question(fitted: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", *fitted, "--image", "x.png") == 1
    assert "together" in capsys.readouterr().err


class Killed(BaseException):
    """What a killed process looks like from inside."""


def killed_at_step_4(monkeypatch: pytest.MonkeyPatch, recipe: Path, root: Path, *flags: str) -> None:
    """A fit that ends as soon as its fourth step is saved."""
    save = RunCheckpoints._save

    def save_then_die(self: RunCheckpoints, trainer: Trainer) -> None:
        save(self, trainer)
        if trainer.global_step == 4:
            raise Killed

    with monkeypatch.context() as context:
        context.setattr(RunCheckpoints, "_save", save_then_die)
        with pytest.raises(Killed):
            run("fit", recipe, root, *flags)


def test_an_interrupted_run_resumes_on_the_same_curve_even_past_a_truncated_checkpoint(
    fitted: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, finished = fitted
    killed_at_step_4(monkeypatch, recipe, tmp_path)
    folder = tmp_path / "small" / "fit_0"
    newest = saved_checkpoints(folder / "checkpoints")[-1]
    assert newest.name == "step=000004.ckpt"
    newest.write_bytes(newest.read_bytes()[:5000])

    caplog.set_level("INFO")
    assert run("fit", recipe, tmp_path) == 0
    assert "step=000004.ckpt is damaged" in caplog.text
    assert [path.name for path in (tmp_path / "small").iterdir()] == ["fit_0"]
    ours, theirs = scalars(folder), scalars(finished / "small" / "fit_0")
    for tag, curve in theirs.items():
        if tag.startswith(("train/", "val/", "test/", "lr-")) and not tag.endswith("_per_second"):
            assert ours[tag] == curve, tag
    shorter = ("--trainer.max_steps", "2", "--trainer.limit_val_batches", "0", "--model.test_after_fit", "false")
    assert run("fit", recipe, tmp_path, *shorter) == 0
    assert (tmp_path / "small" / "fit_1" / "results.json").is_file()  # other settings, or finished: anew


def test_one_epoch_with_workers_goes_on_with_the_next_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the recipes of large models: Lightning has to count the steps, with a loader, before it restores."""
    flags = (
        "--trainer.max_epochs", "1", "--trainer.max_steps", "-1", "--data.train.size", "16", "--data.num_workers", "1",
        "--trainer.limit_val_batches", "0", "--data.test", "null",
    )  # fmt: skip
    recipe = write_recipe(tmp_path)
    assert run("fit", recipe, tmp_path / "whole", *flags) == 0
    killed_at_step_4(monkeypatch, recipe, tmp_path / "half", *flags)
    assert run("fit", recipe, tmp_path / "half", *flags) == 0
    half, whole = (scalars(tmp_path / name / "small" / "fit_0")["train/loss"] for name in ("half", "whole"))
    assert [step for step in range(8) if half.get(step) != whole[step]] == [3]  # the killed process never wrote it


def test_a_fit_says_that_it_ends_before_its_first_validation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flags = ("--trainer.max_steps", "1", "--trainer.val_check_interval", "3", "--data.test", "null")
    assert run("fit", write_recipe(tmp_path), tmp_path / "runs", *flags) == 0
    assert "It validates on none of them: `trainer.val_check_interval: 3` is more than its 1 steps." in caplog.text


QUICK = (
    "--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--data.fit_test_size", "3",
    "--model.fit_baselines", "[]",
)  # fmt: skip
QUICK_TEST = ("--model.baselines", "[]", "--data.test_size", "2")


@pytest.mark.parametrize(
    "flags",
    [
        ["--trainer.limit_test_batches", "0"],
        pytest.param(
            ["--trainer.limit_test_batches", "0.0", "--trainer.limit_val_batches", "0"], marks=pytest.mark.slow
        ),
        ["--trainer.limit_val_batches", "0"],
        pytest.param(["--data.test", "null"], marks=pytest.mark.slow),
        ["--data.test", "null", "--data.val", "null"],
    ],
)
def test_a_fit_ends_with_or_without_a_test(flags: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Other commands then have weights to use, and the same one trains anew."""
    recipe, root = write_recipe(tmp_path), tmp_path / "runs"
    assert run("fit", recipe, root, *QUICK, *flags) == 0
    results = json.loads((root / "small" / "fit_0" / "results.json").read_text())
    assert ("validates on nothing; tests on nothing." in caplog.text) == ("--data.val" in flags)
    assert "It validates on none of them" not in caplog.text
    tested = not {"--trainer.limit_test_batches", "--data.test"} & set(flags)
    assert (results["steps"], results["split"]) == (2, "test" if tested else None)
    assert run("test", recipe, root, *QUICK_TEST) == 0
    assert run("fit", recipe, root, *QUICK, *flags) == 0
    assert (root / "small" / "fit_1" / "results.json").is_file()


def test_a_trial_run_ends_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a checkpoint, so that no other command takes it for a fit."""
    recipe, root = write_recipe(tmp_path), tmp_path / "runs"
    assert run("fit", recipe, root, "--trainer.fast_dev_run", "true") == 0
    assert json.loads((root / "small" / "fit_0" / "results.json").read_text())["split"] is None
    assert run("test", recipe, root) == 1
    assert "no finished fit" in capsys.readouterr().err


def test_a_test_that_fails_does_not_lose_the_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, root = write_recipe(tmp_path), tmp_path / "runs"

    def fail(*_: Any) -> None:
        raise RuntimeError("of the test alone")

    monkeypatch.setattr(PruningModule, "test_step", fail)
    with pytest.raises(RuntimeError, match="of the test alone"):
        run("fit", recipe, root, *QUICK)
    monkeypatch.undo()
    folder = root / "small" / "fit_0"
    assert not (folder / "results.json").exists()
    assert run("test", recipe, root, *QUICK_TEST) == 0
    monkeypatch.setattr(KL, "step", fail)  # nothing is trained a second time
    assert run("fit", recipe, root, *QUICK) == 0
    results = json.loads((folder / "results.json").read_text())
    assert (results["steps"], results["split"], results["n"]) == (2, "test", 3)
    assert not (root / "small" / "fit_1").exists()


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path)
    save = Trainer.save_checkpoint

    def fill_the_disk(self: Trainer, filepath: Path, *args: Any) -> None:
        if self.global_step < 4:
            save(self, filepath, *args)
            return
        Path(filepath).write_bytes(b"half a checkpoint")
        raise OSError(errno.ENOSPC, "No space left on device", str(filepath))

    monkeypatch.setattr(Trainer, "save_checkpoint", fill_the_disk)
    assert run("fit", recipe, tmp_path / "runs") == 1
    assert "No space left on the device" in capsys.readouterr().err
    folder = tmp_path / "runs" / "small" / "fit_0"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step=000002.ckpt"]
    assert not (folder / "results.json").exists()


def test_own_data_trains_and_bad_samples_are_counted(tmp_path: Path) -> None:
    Image.new("RGB", (112, 112), "red").save(tmp_path / "red.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "red.png").read_bytes()[:60])
    lines = [{"question": "which colour", "answer": "red", "image": "red.png"}] * 3
    lines.append({"question": "which colour", "answer": "red", "image": "bad.png"})
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = yaml.safe_load(SMALL)
    own = {"class_path": "JSONL", "init_args": {"path": str(tmp_path / "own.jsonl"), "on_error": "skip"}}
    config["data"] |= {"train": own, "val": own, "test": own}
    config["trainer"] |= {"max_steps": 2, "val_check_interval": 2}
    recipe = write_recipe(tmp_path, yaml.safe_dump(config))
    with pytest.warns(UserWarning, match="Skipped a bad sample"):
        assert run("fit", recipe, tmp_path / "runs") == 0
    results = json.loads((tmp_path / "runs" / "small" / "fit_0" / "results.json").read_text())
    assert results["n"] == 3
    assert len(results["skipped"]) == 1
    assert "bad.png" in results["skipped"][0]


def test_a_bad_sample_stops_a_run_with_its_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.png").write_bytes(b"nothing")
    (tmp_path / "own.jsonl").write_text(json.dumps({"question": "q", "answer": "a", "image": "bad.png"}))
    recipe = write_recipe(tmp_path)
    data = ("--data.train", "JSONL", "--data.train.path", str(tmp_path / "own.jsonl"))
    assert run("fit", recipe, tmp_path / "runs", *data) == 1
    error = capsys.readouterr().err
    assert error.strip().splitlines()[-1].startswith("error: ")
    assert "own.jsonl, line 1" in error
    assert not (tmp_path / "runs" / "small" / "fit_0").exists()  # it had nothing to show


def test_configured_values_go_before_those_of_a_checkpoint(
    fitted: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("glimpse_lightning.training.module.rank_zero_info", said.append)
    recipe, root = fitted
    saved = saved_checkpoints(root / "small" / "fit_0" / "checkpoints")[-1]
    flags = ["--ckpt_path", str(saved), "--trainer.max_steps", "10", "--model.test_after_fit", "false"]
    flags += ["--model.optimizer.lr", "1e-5", "--model.optimizer.weight_decay", "0.2"]
    flags += ["--trainer.limit_val_batches", "0"]
    assert run("fit", recipe, tmp_path, *flags) == 0
    (newest,) = saved_checkpoints(tmp_path / "small" / "fit_0" / "checkpoints")[-1:]
    state = torch.load(newest, weights_only=True)
    assert state["lr_schedulers"][0]["base_lrs"] == [1e-5, 1e-5]
    groups = state["optimizer_states"][0]["param_groups"]
    assert [(group["initial_lr"], group["weight_decay"]) for group in groups] == [(1e-5, 0.2), (1e-5, 0.0)]
    assert max(group["lr"] for group in groups) <= 1e-5
    assert any("lr 0.001 -> 1e-05, weight_decay 0.01 -> 0.2" in line for line in said)


def test_curves_of_a_training_show_rate_gradients_and_speed(fitted: tuple[Path, Path]) -> None:
    logged = scalars(fitted[1] / "small" / "fit_0")
    rates = [value for tag, steps in logged.items() if tag.startswith("lr-") for value in steps.values()]
    assert len(rates) >= 8
    assert min(rates) >= 0 < max(rates)
    assert len(logged["train/grad_norm"]) == 8
    assert min(logged["train/grad_norm"].values()) > 0
    for tag in ("train/samples_per_second", "train/visual_tokens_per_second"):
        assert len(logged[tag]) == 7, tag  # two ends of a batch make a time
    ratio = logged["train/visual_tokens_per_second"][7] / logged["train/samples_per_second"][7]
    assert ratio == pytest.approx(64, rel=1e-5)  # visual tokens of a picture of 224 x 224 pixels


def test_the_gradients_norm_is_that_of_all_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []

    def before(self: PruningModule, optimizer: Any) -> None:
        squares = sum(float(p.grad.double().square().sum()) for p in self.parameters() if p.grad is not None)
        norms.append(squares**0.5)
        original(self, optimizer)

    original = PruningModule.on_before_optimizer_step
    monkeypatch.setattr(PruningModule, "on_before_optimizer_step", before)
    recipe = write_recipe(tmp_path)
    flags = ("--trainer.max_steps", "2", "--trainer.limit_val_batches", "0", "--model.test_after_fit", "false")
    assert run("fit", recipe, tmp_path, *flags) == 0
    logged = scalars(tmp_path / "small" / "fit_0")["train/grad_norm"]
    assert list(logged.values()) == pytest.approx(norms, rel=1e-4)


def test_the_hparams_page_compares_what_differs(fitted: tuple[Path, Path]) -> None:
    started = []
    for file in (fitted[1] / "small" / "fit_0").glob("events.*"):
        events = EventAccumulator(str(file))
        events.Reload()
        try:
            contents = events.PluginTagToContent("hparams").values()
        except KeyError:  # the file of the training's curves
            continue
        data = [plugin_data_pb2.HParamsPluginData.FromString(content) for content in contents]
        started += [part.session_start_info for part in data if part.HasField("session_start_info")]
        for part in data:
            if part.HasField("experiment"):
                shown = [info.name.tag for info in part.experiment.metric_infos]
                assert shown[:2] == ["hp/accuracy", "hp/retention"]
    (start,) = started
    values = {name: value.string_value for name, value in start.hparams.items()}
    assert set(values) == set(COLUMNS)
    assert (values["scorer"], values["objective"], values["pruner"], values["dataset"]) == (
        "VIP",
        "KL",
        "-",
        "GlyphVQA",
    )
    assert "objective.retention" in values["budget"] and "policy.threshold 0.5" in values["budget"]
