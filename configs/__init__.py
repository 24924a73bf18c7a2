"""Configs that come with t3d: `--config preview`, or the path of a file like these."""
