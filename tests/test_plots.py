"""Figures: one look, finite on awkward input, returned and not shown."""

from __future__ import annotations

import pytest
from helpers import toy_splits

from mtl_helpers.models import SharedBottom
from mtl_helpers.training import fit
from mtl_helpers.widgets.figures import (
    figure,
    figure_png,
    interval_dots,
    learning_curves,
    paired_dots,
    task_style,
)


@pytest.fixture(scope="module")
def history():
    splits = toy_splits()
    return fit(
        SharedBottom(splits.schema, splits.tasks), splits.train, splits.valid, epochs=2, progress=False
    )


def test_learning_curves_have_a_panel_a_task(history):
    fig = learning_curves(history, title="All three fall")
    assert [ax.get_title(loc="left") or ax.get_title() for ax in fig.axes] == ["click", "kind", "dwell"]
    assert all(len(ax.lines) == 3 for ax in fig.axes)
    assert figure_png(fig).startswith(b"\x89PNG")


def test_a_metric_that_was_not_measured(history):
    with pytest.raises(ValueError, match="'ndcg'"):
        learning_curves(history, "ndcg")


def test_a_task_keeps_its_style_and_no_two_named_tasks_share_one():
    assert task_style("click") == task_style("click")
    assert task_style("anything") == task_style("anything")
    known = [task_style(name) for name in ("click", "purchase", "next_category", "long_view", "like")]
    assert len({style["color"] for style in known}) == len({style["marker"] for style in known}) == len(known)
    task_style("click")["color"] = "red"
    assert task_style("click")["color"] != "red"


def test_interval_dots_draw_what_they_return():
    ax = figure().subplots()
    found = interval_dots(ax, {"a": [1, 2, 3], "b": [2, 2, 2.5]})
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert found["a"].mean == pytest.approx(2)
    assert ax.lines[1].get_xdata() == pytest.approx([found["a"].low, found["a"].high])


def test_paired_dots_are_centred_on_zero():
    ax = figure().subplots()
    paired_dots(ax, {"click": [0.1, 0.2, 0.3]}, better="shared", worse="single")
    low, high = ax.get_xlim()
    assert low == -high


def test_no_global_figure_is_left_open():
    from matplotlib import pyplot

    figure()
    assert pyplot.get_fignums() == []
