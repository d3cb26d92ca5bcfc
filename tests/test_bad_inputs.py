"""Every bad input of the table gets its promised error, in words that name the cause, and nothing is lost."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from bad_inputs import CASES, Case, outcome

from mtl_helpers.data import Task

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_answer(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "box").mkdir()
    assert outcome(case, tmp_path / "box") == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["box"], "something was written beside the folder"


def test_cases_are_many_and_distinct():
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) >= 60


@pytest.mark.parametrize(
    ("case", "finding"),
    [
        (Case("x", "fine", ValueError, "", lambda _: 1), "raised nothing"),
        (Case("x", "other type", TypeError, "kind", lambda _: Task("a", kind="b")), "raised ValueError"),
        (
            Case("x", "other cause", ValueError, "colour", lambda _: Task("a", kind="b")),
            "does not name the cause",
        ),
        (Case("x", "subclass", LookupError, "b", lambda _: {}["b"]), "raised KeyError"),
        (
            Case("x", "leaves a file", ValueError, "", lambda f: ((f / "half").touch(), int("x"))),
            "files were changed",
        ),
    ],
    ids=lambda value: value.what if isinstance(value, Case) else "",
)
def test_the_judge_sees_planted_faults(case, finding, tmp_path):
    assert finding in outcome(case, tmp_path)


def test_no_module_unpickles():
    """torch.load only with weights_only, and neither pickle, eval, exec nor numpy's pickles anywhere."""
    for path in sorted((ROOT / "mtl_helpers").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert called not in ("eval", "exec", "pickle.load", "pickle.loads", "pd.read_pickle"), path
            assert keywords.get("allow_pickle") != "True", path
            if called == "torch.load":
                assert keywords.get("weights_only") == "True", path


def test_nothing_listens_and_nothing_knows_pickle():
    """Neither the package nor a notebook imports a server, a socket or a format that can carry code."""
    servers = "socket socketserver http.server xmlrpc wsgiref"
    unwanted = set(f"{servers} pickle cloudpickle marshal shelve dill joblib".split())
    texts = [*(ROOT / "mtl_helpers").rglob("*.py"), *(ROOT / "notebooks" / "source").glob("[0-9]*.py")]
    assert len(texts) > 30
    for path in texts:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            found = {name for name in names if name in unwanted or name.partition(".")[0] in unwanted}
            assert not found, f"{path.name} imports {found}"
