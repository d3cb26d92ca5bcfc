"""Helpers for the course "Multi-Task Learning for Recommender Systems".

Each module is small, and its docstring names the notebook in which it is taught. Nothing heavy is imported
here: ``import mtl_helpers`` costs nothing, ``import mtl_helpers.models`` brings torch.
"""

__version__ = "0.1.0"
