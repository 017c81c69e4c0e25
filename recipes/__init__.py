"""The recipes, as package data: ``glimpse_lightning.recipes``."""
