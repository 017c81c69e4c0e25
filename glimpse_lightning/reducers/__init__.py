"""Reducers: what becomes of dropped tokens. One file and one import line each."""

from glimpse_lightning.reducers.base import Reducer
from glimpse_lightning.reducers.drop import Drop

__all__ = ["Drop", "Reducer"]
