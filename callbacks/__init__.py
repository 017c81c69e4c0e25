"""Lightning callbacks, installed as ``glimpse_lightning.callbacks``."""

if __name__ != "glimpse_lightning.callbacks":
    raise ImportError(
        f"These callbacks were imported as {__name__!r}, which would make second, different classes of them; "
        "import `glimpse_lightning.callbacks` (after `pip install -e .`)."
    )

from glimpse_lightning.callbacks.answer_writer import AnswerWriter
from glimpse_lightning.callbacks.results_writer import ResultsWriter
from glimpse_lightning.callbacks.retention_histogram import RetentionHistogram
from glimpse_lightning.callbacks.run_checkpoints import RunCheckpoints
from glimpse_lightning.callbacks.run_progress import RunProgress
from glimpse_lightning.callbacks.token_overlay import TokenOverlay
from glimpse_lightning.callbacks.training_speed import TrainingSpeed
from glimpse_lightning.runtime.errors import suggest_names

__all__ = [
    "AnswerWriter",
    "ResultsWriter",
    "RetentionHistogram",
    "RunCheckpoints",
    "RunProgress",
    "TokenOverlay",
    "TrainingSpeed",
]

suggest_names(__name__)
