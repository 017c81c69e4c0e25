"""Workers end with their parent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Its worker inherits standard output, so that whoever reads that waits until the worker has ended, too.
KILLED = """\
import os, signal
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
    batches = iter(VQAData(val=Large(), eval_batch_size=2, num_workers=1).val_dataloader())
    print(len(next(batches).samples), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    done = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, timeout=60, text=True)
    assert done.stdout == "2\n"
    assert done.returncode == -9
