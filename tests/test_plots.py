"""Figures: one look, finite on awkward input, returned and not shown."""

from __future__ import annotations

import html

import pandas as pd
import pytest
from helpers import toy_splits

from mtl_helpers.metrics import Interval
from mtl_helpers.models import SharedBottom
from mtl_helpers.training import fit
from mtl_helpers.widgets import figures as plots
from mtl_helpers.widgets.figures import figure, learning_curves, task_style


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
    assert plots._shown(fig)[0].startswith(b"\x89PNG")


def test_a_task_keeps_its_style_and_no_two_named_tasks_share_one():
    assert task_style("click") == task_style("click")
    assert task_style("anything") == task_style("anything")
    known = [task_style(name) for name in ("click", "purchase", "next_category", "long_view", "like")]
    assert len({style["color"] for style in known}) == len({style["marker"] for style in known}) == len(known)
    task_style("click")["color"] = "red"
    assert task_style("click")["color"] != "red"


def test_interval_rows_draw_what_they_return():
    ax = figure().subplots()
    found = plots.interval_rows(ax, {"a": [1, 2, 3], "b": [2, 2, 2.5]}, zero=False)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert found["a"].mean == pytest.approx(2)
    assert ax.lines[1].get_xdata() == pytest.approx([found["a"].low, found["a"].high])


def test_models_and_metrics_have_colours_of_no_task():
    tasks = {
        task_style(name)["color"] for name in ("click", "purchase", "next_category", "long_view", "like")
    }
    models = {
        plots.model_style(name)["color"] for name in ("single-task", "shared bottom", "MMoE", "PLE", "CGC")
    }
    metrics = {style["color"] for style in plots.METRIC_STYLES.values()}
    assert len(models) == 5 and len(metrics) == 3 and not tasks & (models | metrics)
    assert (
        plots.model_style("Shared_Bottom")
        == plots.model_style("shared")
        == plots.model_style("shared-bottom")
    )


def test_interval_rows_mark_what_survives():
    ax = figure().subplots()
    rows = {"a": Interval(0.01, 0.005, 0.015, 8), "b": Interval(-0.002, -0.003, -0.001, 8)}
    assert plots.interval_rows(ax, rows, holm=["a"]) == rows
    assert [text.get_text() for text in ax.texts] == ["+0.0100 ★", "−0.0020"]
    assert [ax.lines[i].get_markerfacecolor() == "white" for i in (1, 3)] == [False, True]


def test_a_table_marks_the_best_hides_a_counting_index_and_is_the_same_at_every_build():
    frame = pd.DataFrame(
        {"model": ["a<", "b"], "AUC": [0.71234, 0.7], "gain": [-0.1, 0.2], "rows": [12000, 3]}
    )
    text = plots.table(frame, best={"AUC": "max", "gain": "min"}).to_html()
    assert "<b>0.712</b>" in text and "<b>−0.100</b>" in text and "12,000" in text and "a&lt;" in text
    assert (
        "row_heading" not in text and text == plots.table(frame, best={"AUC": "max", "gain": "min"}).to_html()
    )
    assert ">model<" in plots.table(frame.set_index("model")).to_html()


def test_labels_stand_beside_what_they_name():
    ax = figure().subplots()
    for name in ("a", "b"):
        ax.plot([1, 2], [0, {"a": 1, "b": 1.001}[name]], label=name)
    plots.name_lines(ax)
    low, high = sorted(text.xy[1] for text in ax.texts)
    assert high - low > 0.05
    bars = figure().subplots()
    bars.barh(["x"], [-0.5])
    plots.value_labels(bars)
    assert bars.texts[0].get_text() == "−0.500"
    plots.within(bars, -0.4, axis="x")
    assert bars.get_xlim()[0] == -0.4


def test_a_stored_picture_says_where_it_comes_from(tmp_path):
    (tmp_path / "a.png").write_bytes(plots._shown(figure(1))[0])
    assert "From the author's run" in html.unescape(plots.stored_picture(tmp_path / "a.png", "Bars.").data)


def test_a_figure_is_shown_at_half_its_pixels():
    png, size = plots._shown(figure(2))
    assert size == {"width": 860, "height": 200} and int.from_bytes(png[16:20], "big") == 1720
