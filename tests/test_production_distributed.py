"""Two processes end where one ends; a killed one is told of, and the last checkpoint resumes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import toy_splits

from mtl_helpers.data import Batch, hide_labels
from mtl_helpers.files import Checkpoint
from mtl_helpers.models import MMoE, SharedBottom
from mtl_helpers.production import distributed
from mtl_helpers.training import fit
from mtl_helpers.weighting import DWA, FAMO, Fixed, GradNorm, UncertaintyWeighting

HERE = Path(__file__).resolve()
WEIGHTS = {"click": 1.0, "kind": 0.5, "dwell": 2.0}
CASES = {
    "fixed": (SharedBottom, lambda tasks: Fixed(tasks, WEIGHTS)),
    "learned": (SharedBottom, UncertaintyWeighting),
    "moving": (MMoE, DWA),
    "twice a step": (SharedBottom, FAMO),
    "rare": (SharedBottom, lambda tasks: Fixed(tasks, WEIGHTS)),
}
needs_gloo = pytest.mark.skipif(
    sys.platform == "win32" or not torch.distributed.is_available(), reason="torchrun with gloo"
)


def trained(case: str, wrap=lambda strategy: strategy, epochs: int = 6, **more):
    """Half of two tasks' labels are missing; batches of 67 do not halve, and the last one has few rows."""
    data, (kind, strategy) = toy_splits(600), CASES[case]
    train = hide_labels(data.train, "dwell", 5) if case == "rare" else data.train  # most batches have none
    torch.manual_seed(0)
    model = kind(data.schema, data.tasks)
    how = {"epochs": epochs, "batch_size": 67, "lr": 3e-3, "patience": 2, "progress": False}
    return model, fit(model, train, data.valid, weights=wrap(strategy(data.tasks)), **how | more)


def worker(mode: str, folder: Path) -> None:
    rank = int(os.environ["RANK"])
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    torch.set_num_threads(1)
    with distributed.processes(seconds=30):
        for case in CASES if mode == "equal" else ():
            torch.manual_seed(rank)
            model, history = trained(case, distributed.across)
            torch.save((model.state_dict(), history.records), folder / f"{case}-{rank}")
        if mode == "equal":
            with pytest.raises(TypeError, match="takes gradients apart"):
                distributed.across(GradNorm(toy_splits(60).tasks))
            return

        def slow(strategy):
            strategy.after_epoch = lambda *means: time.sleep(0.3)
            return distributed.across(strategy)

        if (folder / "last.pt").exists():
            torch.save(Checkpoint(folder / "last.pt").load(), folder / f"begun-{rank}")
        model, history = trained("fixed", slow, 12, patience=12, checkpoint=folder / "last.pt")
        torch.save((model.state_dict(), history.records), folder / f"end-{rank}")


def start(mode: str, folder: Path, restarts: int = 0) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command.append(f"--max-restarts={restarts}")
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent)])
    env = os.environ | {"GLOO_SOCKET_IFNAME": loopback, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, str(HERE), mode, str(folder)], env=env, **pipes)


def ended(job: subprocess.Popen, folder: Path) -> str:
    """The log of a job that ended by itself; none of its processes is left, whatever happened."""
    try:
        return job.communicate(timeout=120)[0]
    finally:
        job.terminate()
        job.wait(30)
        for file in folder.glob("pid-*"):
            with pytest.raises(ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGKILL)


def kill_one(folder: Path) -> None:
    begun = time.monotonic()
    while not (folder / "last.pt").exists() and time.monotonic() < begun + 100:
        time.sleep(0.05)
    os.kill(int((folder / "pid-1").read_text()), signal.SIGKILL)


def close(folder: Path, name: str, model, history) -> None:
    for rank in (0, 1):
        state, records = torch.load(folder / f"{name}-{rank}")
        torch.testing.assert_close(state, dict(model.state_dict()), rtol=0, atol=1e-5)
        assert len(records) == len(history.records)
        for there, here in zip(records, history.records, strict=True):
            assert there["value"] == pytest.approx(here["value"], abs=1e-5, nan_ok=True)


@needs_gloo
@pytest.mark.slow
def test_two_processes_end_where_one_ends(tmp_path):
    job = start("equal", tmp_path)
    log = ended(job, tmp_path)
    assert job.returncode == 0, log
    for case in CASES:
        close(tmp_path, case, *trained(case))


@needs_gloo
@pytest.mark.slow
def test_a_killed_process_ends_the_run_with_a_word_and_the_checkpoint_resumes(tmp_path):
    job = start("resume", tmp_path)
    kill_one(tmp_path)
    log, file, left = ended(job, tmp_path), tmp_path / "last.pt", []
    assert job.returncode != 0 and "SIGKILL" in log and not (tmp_path / "end-0").exists(), log
    done = Checkpoint(file).load()

    def counted(strategy):
        strategy.after_epoch = lambda *means: left.append(means)
        return strategy

    resumed, _ = trained("fixed", counted, 12, patience=12, checkpoint=file)
    assert 1 <= done < 12 and len(left) == 12 - done, "it began anew"
    whole, _ = trained("fixed", epochs=12, patience=12)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=1e-5)


@needs_gloo
@pytest.mark.slow
def test_torchrun_starts_them_again_from_the_checkpoint(tmp_path):
    job = start("resume", tmp_path, restarts=1)
    kill_one(tmp_path)
    log = ended(job, tmp_path)
    assert job.returncode == 0, log
    assert 1 <= torch.load(tmp_path / "begun-0") < 12, "it began anew"
    close(tmp_path, "end", *trained("fixed", epochs=12, patience=12))


@needs_gloo
def test_who_loses_another_says_what_to_do(monkeypatch):
    """Under torchrun one that sleeps may be ended before it can say so."""
    alone = torch.distributed.HashStore(), 0, 1
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda _: iter([alone]))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    word = r"Process 0 stops: .*goes on from the last checkpoint\. \(Connection closed"
    with pytest.raises(RuntimeError, match=word), distributed.processes():
        raise RuntimeError("Connection closed by peer")


def test_one_process_resumes_to_the_same_numbers(tmp_path):
    whole, history = trained("learned", epochs=5)
    trained("learned", epochs=2, checkpoint=tmp_path / "last.pt")
    model, resumed = trained("learned", epochs=5, checkpoint=tmp_path / "last.pt")
    torch.testing.assert_close(model.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert (resumed.records, resumed.best_epoch) == (history.records, history.best_epoch)
    assert not list(tmp_path.glob(".*"))


def test_a_share_without_rows_has_loss_0():
    data = toy_splits(60).train
    batch = next(data.batches(1, shuffle=False))
    none = distributed._share(batch, slice(1, None, 2))
    assert isinstance(none, Batch) and len(none) == 0
    model = SharedBottom(toy_splits(60).schema, data.tasks)
    assert Fixed(data.tasks).losses(model, none).tolist() == [0, 0, 0]


if __name__ == "__main__":
    worker(sys.argv[1], Path(sys.argv[2]))
