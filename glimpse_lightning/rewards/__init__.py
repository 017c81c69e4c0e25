"""Rewards: functions that score an answer. One file and one import line each.

The parameters of a reward name the facts that it gets: ``question``, ``answer``, ``reference`` (the first one),
``references``, ``boxes`` (evidence boxes of each image, or ``None``), ``retention`` (share of visual tokens kept),
``tokens`` (length of the answer, its end token included), ``finished`` (whether the answer reached its end token). All
other parameters are options, set in YAML. A reward returns a float. A class is instantiated once, with its options, and
its instance is called in the same way.

Examples:
    >>> import glimpse_lightning as gl
    >>> gl.rewards.anls(answer="heart", references=["heart", "a heart"])
    1.0
"""

from glimpse_lightning.rewards.anls import anls
from glimpse_lightning.rewards.box_iou import box_iou
from glimpse_lightning.rewards.choice import choice
from glimpse_lightning.rewards.combined import CombinedReward, Rewarded, RewardFacts
from glimpse_lightning.rewards.exact_match import exact_match
from glimpse_lightning.rewards.format import format
from glimpse_lightning.rewards.judge import Judge, JudgeError, judge
from glimpse_lightning.rewards.length import length
from glimpse_lightning.rewards.pruning_rate import pruning_rate
from glimpse_lightning.rewards.vqa_accuracy import vqa_accuracy
from glimpse_lightning.runtime.errors import suggest_names

__all__ = [
    "CombinedReward",
    "Judge",
    "JudgeError",
    "RewardFacts",
    "Rewarded",
    "anls",
    "box_iou",
    "choice",
    "exact_match",
    "format",
    "judge",
    "length",
    "pruning_rate",
    "vqa_accuracy",
]

suggest_names(__name__)
