"""The glossary: each term is taught where it says, in both languages, and each notebook's new words are in it."""

from __future__ import annotations

import re

import jupytext
import pytest
from test_links import ROOT, TEXTS

SOURCES = {text.stem: text for text in TEXTS}
# Words in bold type that stress something, and are no terms of the field.
STRESSED = """
a dead slider, a guess, a narrow bottom, a third task, after, all, alone, and place, buy, by category, by
time, by user, category, click, clicked, code, common factor, data, decay, decay not tuned, drag the
threshold, dropout of experts, drops, exchange, features, hand, hidden, id, ids, in production, its own
stop, labels, log, losses, mean, mean over samples, model, move the slider, naive, neutral start, no
bias, normalises, observed, opposed tastes, oracle, other products, permutation, projects, pydantic, rate
not tuned, raw, replayed, same, shared gate, shares, sharing itself, shuffled rows, sum, sum over
classes, table, target, ten other shops, the last layer, the same scores, today, user, variance, vectors,
wait, watch, weight, while, who decides, words, zero
"""
GLOSSARY = (ROOT / "notebooks" / "glossary.md").read_text(encoding="utf-8")
ENTRY = re.compile(r"\| (.+?) \| (.+?) \| (.+?) \| \[(\d\d)\]\((\w+)\.ipynb\): (.+?) \|")


def test_the_glossary_is_a_table_of_entries():
    rows = [line for line in GLOSSARY.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 30
    assert all(ENTRY.fullmatch(row) for row in rows), [row for row in rows if not ENTRY.fullmatch(row)]
    terms = [ENTRY.fullmatch(row)[1] for row in rows]
    assert len(set(terms)) == len(terms)
    assert all(re.search(r"[\u4e00-\u9fff]", ENTRY.fullmatch(row)[2]) for row in rows)


@pytest.mark.parametrize("entry", ENTRY.findall(GLOSSARY), ids=lambda entry: entry[0])
def test_a_term_is_taught_where_the_glossary_says(entry):
    term, _, _, number, name, heading = entry
    assert name.startswith(number) and (ROOT / "notebooks" / f"{name}.ipynb").is_file()
    text = SOURCES[name].read_text(encoding="utf-8")
    found = re.search(rf"^# (##+) {re.escape(heading)}$", text, re.MULTILINE)
    assert found, f"{name} has no heading {heading!r}"
    end = re.compile(r"^# ## " if found[1] == "##" else r"^# ##", re.MULTILINE).search(text, found.end())
    section = text[found.start() : end.start() if end else None]  # down to the next heading of its level
    said = " ".join(re.sub(r"^#", " ", section, flags=re.MULTILINE).lower().split())
    assert term.partition(" (")[0].lower() in said


@pytest.mark.parametrize("name", SOURCES)
def test_the_new_words_of_a_notebook_are_in_the_glossary(name):
    """A new word stands in bold type, and has up to three words."""
    cells = jupytext.read(SOURCES[name], fmt="py:percent").cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    bold = {" ".join(words.lower().split()) for words in re.findall(r"\*\*([a-zA-Z][\w’' -]+)\*\*", prose)}
    terms = {part.strip() for entry in ENTRY.findall(GLOSSARY) for part in re.split("[()]", entry[0].lower())}
    stressed = {" ".join(words.split()) for words in STRESSED.split(",")}
    known = stressed | terms | {f"{term}s" for term in terms}
    assert sorted(words for words in bold - known if len(words.split()) <= 3) == []
