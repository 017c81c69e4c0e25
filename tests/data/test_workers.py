"""Workers end with their parent, and start however Python starts processes."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

from PIL import Image
from torch.utils.data import ConcatDataset, Dataset

from glimpse_lightning.data.datamodule import VQAData
from glimpse_lightning.data.glyph_vqa import GlyphVQA
from glimpse_lightning.data.jsonl import JSONL
from glimpse_lightning.data.sample import Sample
from glimpse_lightning.data.tables.table import Table

# Workers inherit standard output, so that its reader waits until they have ended, too. The script forks when everything
# is imported. Each child ends as a script does, with the interpreter's last steps, or is killed.
LEFT = """\
import os, signal, sys
from PIL import Image
from torch.utils.data import Dataset
from glimpse_lightning.data.datamodule import VQAData
from glimpse_lightning.data.sample import Sample

class Large(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        return Sample(str(index), index, "q", ["a"], [Image.effect_noise((600, 600), 90)])

if __name__ == "__main__":
    ends = ["pass", "raise ValueError", "sys.exit(3)", "os.kill(os.getpid(), signal.SIGKILL)"]
    children = []
    for end in ends:
        if (child := os.fork()) == 0:
            break
        children.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    else:
        print(children)
        sys.exit()
    batches = iter(VQAData(val=Large(), eval_batch_size=2, num_workers=1).val_dataloader())
    print(len(next(batches).samples), flush=True)
    exec(end)
"""


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """Where it is killed; and at a script's end, after an error, and after ``sys.exit``, although they ignore SIGTERM,
    by which Python would end them before it waits for them.
    """
    script = tmp_path / "left.py"
    script.write_text(LEFT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, timeout=250, text=True)
    assert (done.stdout, done.returncode) == ("2\n2\n2\n2\n[0, 1, 3, -9]\n", 0), done.stderr


def _dataset(kind: str, folder: Path) -> Dataset[Sample]:
    if kind == "GlyphVQA":
        return GlyphVQA("val", 3, image_size=224)
    Image.new("RGB", (28, 28)).save(folder / "a.png")
    row = {"question": "what is it", "answers": ["x"], "image": "a.png"}
    (folder / "data.jsonl").write_text(json.dumps(row) + "\n")
    return JSONL(str(folder / "data.jsonl")) if kind == "JSONL" else Table(str(folder / "data.jsonl"))


def test_workers_that_inherit_nothing(tmp_path: Path) -> None:
    """As on macOS and Windows, and on Linux from Python 3.14 on, where processes are not forked."""
    every = ConcatDataset([_dataset(kind, tmp_path) for kind in ("GlyphVQA", "JSONL", "Table")])
    loader = VQAData(val=every, eval_batch_size=2, num_workers=1).val_dataloader()
    loader.multiprocessing_context = multiprocessing.get_context("spawn")
    assert sum(len(batch.samples) for batch in loader) == len(every) == 5
