"""Batch jobs on a Ray cluster (extra ``ray``): the command ``batch``, and :class:`Answerer` for pipelines of your own.

``import ray`` in these files finds Ray itself, as the package's name is ``glimpse_lightning.integrations.ray``.
"""
