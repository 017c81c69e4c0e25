"""Small runs of the real command line."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from glimpse_lightning.cli import main

SMALL = """\
# A run of a few seconds.
vars: {retention: 0.1}
model:
  after_layer: 1
  scorer:
    class_path: VIP
    init_args: {vision_layers: [1], attention_dim: 16, condition_dim: 16, heads: 2}
  policy: Threshold
  objective:
    class_path: KL
    init_args: {retention: "${vars.retention}"}
  max_new_tokens: 3
data:
  train: {class_path: GlyphVQA, init_args: {split: train, size: 64, image_size: 224}}
  val: {class_path: GlyphVQA, init_args: {split: val, size: 3, image_size: 224}}
  test: {class_path: GlyphVQA, init_args: {split: test, size: 9, image_size: 224}}
  batch_size: 2
  num_workers: 0
  fit_test_size: 7
trainer:
  accelerator: cpu
  max_steps: 8
  val_check_interval: 4
  check_val_every_n_epoch: null
  log_every_n_steps: 1
  enable_progress_bar: false
  callbacks:
    - class_path: RunCheckpoints
      init_args: {every_n_steps: 2}
    - class_path: TokenOverlay
      init_args: {samples: 2}
"""


def write_recipe(folder: Path, text: str = SMALL, name: str = "small.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def run(command: str, recipe: Path, root: Path, *flags: str) -> int:
    """Run a command of the command line in this process; returns its exit status."""
    return main([command, "--config", str(recipe), "--trainer.default_root_dir", str(root), *flags])


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Everything a run logged: tag -> step -> value, later files winning."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for file in sorted(folder.glob("events.out.tfevents.*")):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            found[tag] |= {event.step: event.value for event in events.Scalars(tag)}
    return found
