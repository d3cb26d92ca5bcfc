"""From a notebook to production, taught in notebook 10: serving, streaming, several machines, privacy, a watch.

Engines that others keep (onnxruntime, FastAPI, pyarrow, Ray, Opacus, captum) are imported where they are used: the rest
of the course runs without them. ``python -m pip install ".[production]"`` in the repository brings all of them.
"""
