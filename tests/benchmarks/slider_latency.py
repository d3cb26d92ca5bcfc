"""From the key press to the new picture on the screen, in real JupyterLab and Chromium.

    python tests/benchmarks/slider_latency.py [--moves 60] [--many 500] [--only weight]

A move is timed in the page: from the ``keydown`` event until the new picture is decoded and the frame that paints it
is over. A frame without a decoded picture is blank. Then the slider moves many times more, and what must not grow is
counted.
Prints a markdown table; the goals are a median of 60 ms or less, p95 of 80 ms or less, no blank frame.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from timing import ROOT, command_line, load, machine, show

sys.path.insert(0, str(ROOT / "tests" / "browser"))
from lab import Book, Lab, missing, open_browser, write_notebook

WATCH = """demo => {
    const picture = () => demo.querySelector('.mtl-demo img:not([alt=""])');   // not those on cards
    const state = picture().alt.split('. ')[1];   // what a first move must change
    const watch = window.watch = {times: [], blank: 0, frames: 0, start: null, state};
    document.addEventListener('keydown', event => { watch.start = event.timeStamp }, true);
    new MutationObserver(() => {
        const image = picture(), start = watch.start;
        const state = image && image.alt.split('. ')[1];   // title. state of the controls. reading
        if (!image || start === null || state === watch.state) return;
        watch.state = state; watch.start = null;
        // the first callback precedes the frame that paints the picture; when the second comes, that frame is out
        image.decode().then(() => requestAnimationFrame(() => requestAnimationFrame(
            () => watch.times.push(performance.now() - start))));
    }).observe(demo, {subtree: true, childList: true, attributes: true});
    const look = () => {
        const image = picture();
        watch.frames += 1;
        if (!image || !image.complete || !image.naturalWidth) watch.blank += 1;
        requestAnimationFrame(look) };
    requestAnimationFrame(look) }"""
RUNNING = "live_training, while it trains"
SETUP = f"""
import sys
sys.path[:0] = ['..', {str(ROOT / "tests" / "browser")!r}]
import widget_demos
from mtl_helpers.widgets import figures
figures.use_course_style()
"""
COUNT = """
import gc, os, psutil
from matplotlib.figure import Figure
gc.collect()
import ipywidgets.widgets.widget as kind
widgets = kind._instances if hasattr(kind, "_instances") else kind.Widget.widgets  # ipywidgets 8, 7
print(sum(isinstance(thing, Figure) for thing in gc.get_objects()), len(widgets), psutil.Process().memory_info().rss)
"""


def measure(browser, lab: Lab, name: str, moves: int, many: int) -> dict[str, object]:
    path, demo_name = f"notebooks/{name}.ipynb", "live_training" if name == RUNNING else name
    write_notebook(lab.root / path, [SETUP, f"widget_demos.ALL[{demo_name!r}]()", COUNT])
    with closing(Book(browser, lab, path)) as book:
        book.run_all()
        assert not book.errors(), book.errors()
        page, demo = book.page, book.demos().first
        handle = demo.get_by_role("slider").first
        handle.scroll_into_view_if_needed()
        handle.focus()
        page.keyboard.press("Home")
        page.wait_for_timeout(1000)
        demo.evaluate(WATCH)
        keys = walk(handle)
        if name == RUNNING:
            demo.get_by_role("button", name="Start").click()
            handle.focus()
        for done in range(1, moves + 1):
            page.keyboard.press(next(keys))
            page.wait_for_function(f"watch.times.length >= {done}", timeout=10_000)
            page.wait_for_timeout(60)
        times = page.evaluate("watch.times")[5:]
        before = count(book)
        handle.focus()
        for _ in range(many):
            page.keyboard.press(next(keys))
            page.wait_for_timeout(15)
        page.wait_for_timeout(1500)
        frames, blank = page.evaluate("[watch.frames, watch.blank]")
        grown = [b - a for a, b in zip(before, count(book), strict=True)]
        return {
            "demo": name,
            "median ms": round(statistics.median(times)),
            "p95 ms": round(statistics.quantiles(times, n=20)[-1]),
            "blank frames": f"{blank} of {frames}",
            "figures": f"{grown[0]:+d}",
            "widgets": f"{grown[1]:+d}",
            "kernel memory": f"{grown[2] / 1e6:+.1f} MB",
            "page memory": f"{grown[3] / 1e6:+.1f} MB",
        }


def walk(handle) -> Iterator[str]:
    """Keys: right until the end of the slider, then left until its start, and so on."""
    low, high = handle.evaluate("e => [e.ariaValueMin, e.ariaValueMax].map(Number)")
    key = "ArrowRight"
    while True:
        now = float(handle.get_attribute("aria-valuenow"))
        if now >= high - 1e-6:
            key = "ArrowLeft"
        elif now <= low + 1e-6:
            key = "ArrowRight"
        yield key


def count(book: Book) -> list[int]:
    """Figures, widgets and bytes of the kernel; bytes of the page's script heap."""
    session = book.context.new_cdp_session(book.page)
    session.send("HeapProfiler.collectGarbage")
    heap = session.send("Runtime.getHeapUsage")["usedSize"]
    session.detach()
    return [*(int(number) for number in book.run_cell(2).split()), int(heap)]


def main() -> None:
    options = command_line(__doc__, moves=60, many=500, only="")
    if reason := missing():
        sys.exit(f"cannot measure: {reason}")
    import widget_demos

    print(f"{machine()}\n")
    names = [name for name in [*widget_demos.ALL, RUNNING] if options.only in name]
    with tempfile.TemporaryDirectory() as root:
        lab = Lab(Path(root))
        try:
            with open_browser() as browser:
                show(measure(browser, lab, name, options.moves, options.many) for name in names)
        finally:
            lab.stop()
    print(f"\n{load()} at the end")


if __name__ == "__main__":
    main()
