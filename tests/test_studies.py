"""The stored tables of the studies: each names the command that makes it, and a study whose rows are there runs nothing
and leaves its table as it is."""

import re
import runpy
import shutil
import sys
from concurrent import futures
from pathlib import Path

import pytest
import torch

from mtl_helpers import data, training
from mtl_helpers.data import public

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
STUDIES, RESULTS = NOTEBOOKS / "studies", NOTEBOOKS / "results"
DRAWS = "0 1 2 3 4 5 6 7"
FINISHED = [
    "nb00_weight_decay.py",
    "nb01_baselines.py",
    "nb02_sharing.py",
    *(f"nb04_strategies.py --data {part}" for part in ("shop", "weights", "cost", "walks")),
    "nb04_strategies.py --data front --draws 100 101 102 103 104 105",
    "nb04_strategies.py --data kuairand --draws 0 100 101 102 103 104 105 106 107",
    "nb04_strategies.py --data kurin --draws 100 101 102",
    "nb05_tables.py --shops 0 1 --parts tune weights",
    "nb05_tables.py",
    "nb06_correlation.py",
    "nb06_shop.py",
    *(f"nb07_tables.py {part} 1000 {DRAWS}" for part in ("seesaw", "budget", "drift", "census")),
    "nb08_rare.py",
    "nb09_content.py",
    "nb09_finetune.py",
    "nb09_scaling.py --seeds 1 --sizes 16 256",
    "nb09_sequence.py",
    "nb09_sizes.py",
    "nb10_privacy.py",
    "nb10_refresh.py",
    "nb10_watch.py",
]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.csv")), ids=lambda path: path.stem)
def test_a_stored_table_begins_with_its_command(path):
    """A study that is there, and that names the table; every row has a cell for each column."""
    first, header, *rows = path.read_text(encoding="utf-8").splitlines()
    script = re.fullmatch(r"# python notebooks/studies/(nb\d\d_\w+\.py)( \S+)*", first)[1]
    text = (STUDIES / script).read_text(encoding="utf-8")
    assert script[2:4] == path.stem[:2]
    assert f'{path.stem}.csv"' in text or re.search(rf'f"{path.stem[:3]}\{{[\w.]+\}}\.csv"', text)
    assert rows and header.count(",") >= 1


@pytest.mark.parametrize("command", FINISHED)
def test_a_finished_study_finds_nothing_to_do(command, tmp_path, monkeypatch):
    def work(*_, **__):
        raise AssertionError(f"{command} has something to do")

    for where, name in ((data, "simulate"), (public, "load_kuairand"), (public, "load_census")):
        monkeypatch.setattr(where, name, work)
    for name in ("fit", "training_steps"):
        monkeypatch.setattr(training, name, work)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(futures, "ProcessPoolExecutor", futures.ThreadPoolExecutor)
    monkeypatch.syspath_prepend(STUDIES)
    stored = {path.name: path.read_bytes() for path in RESULTS.glob("*.csv")}
    shutil.copytree(RESULTS, tmp_path / "results")
    script, *options = command.split()
    monkeypatch.setattr(sys, "argv", [script, *options, "--out", str(tmp_path / "results")])
    runpy.run_path(str(STUDIES / script), run_name="__main__")
    left = {path.name: path.read_bytes() for path in (tmp_path / "results").glob("*.csv")}
    assert left == stored
