"""From the key press to the new picture on the screen, in real JupyterLab and Chromium.

    python tests/benchmarks/slider_latency.py [--moves 60] [--many 500] [--only weight]

A move is timed in the page: from the ``keydown`` event until the new picture is decoded and the frame that paints it
is over. A frame without a decoded picture is blank. Then the slider moves many times more, and what must not grow is
counted.
Prints a markdown table; the goals are a median of 60 ms or less, p95 of 80 ms or less, no blank frame.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "browser"), str(Path(__file__).parents[2])]

from lab import Book, Lab, missing, open_browser, write_notebook  # noqa: E402

WATCH = """demo => {
    const state = demo.querySelector('.mtl-demo img').alt.split('. ')[1];   // what a first move must change
    const watch = window.watch = {times: [], blank: 0, frames: 0, start: null, state};
    document.addEventListener('keydown', event => { watch.start = event.timeStamp }, true);
    new MutationObserver(() => {
        const image = demo.querySelector('.mtl-demo img'), start = watch.start;
        const state = image && image.alt.split('. ')[1];   // title. state of the controls. reading
        if (!image || start === null || state === watch.state) return;
        watch.state = state; watch.start = null;
        // the first callback precedes the frame that paints the picture; when the second comes, that frame is out
        image.decode().then(() => requestAnimationFrame(() => requestAnimationFrame(
            () => watch.times.push(performance.now() - start))));
    }).observe(demo, {subtree: true, childList: true, attributes: true});
    const look = () => {
        const image = demo.querySelector('.mtl-demo img');
        watch.frames += 1;
        if (!image || !image.complete || !image.naturalWidth) watch.blank += 1;
        requestAnimationFrame(look) };
    requestAnimationFrame(look) }"""
RUNNING = "live_training, while it trains"
COUNT = """
import gc, os, psutil
from matplotlib.figure import Figure
gc.collect()
import ipywidgets.widgets.widget as kind
widgets = kind._instances if hasattr(kind, "_instances") else kind.Widget.widgets  # ipywidgets 8, 7
print(sum(isinstance(thing, Figure) for thing in gc.get_objects()), len(widgets), psutil.Process().memory_info().rss)
"""


def measure(browser, lab: Lab, name: str, moves: int, many: int) -> dict:
    running = name == RUNNING
    path = f"notebooks/{name}.ipynb"
    setup = f"import sys; sys.path[:0] = ['..', {str(Path(__file__).parents[1] / 'browser')!r}]\nimport widget_demos\n"
    setup += "from mtl_helpers.widgets import figures; figures.use_course_style()"
    write_notebook(
        lab.root / path, [setup, f"widget_demos.ALL[{'live_training' if running else name!r}]()", COUNT]
    )
    book = Book(browser, lab, path)
    try:
        book.run_all()
        assert not book.errors(), book.errors()
        page, demo = book.page, book.demos().first
        handle = demo.get_by_role("slider").first
        handle.scroll_into_view_if_needed()
        handle.focus()
        page.keyboard.press("Home")
        page.wait_for_timeout(1000)
        demo.evaluate(WATCH)
        walk = Walk(handle)
        if running:
            demo.get_by_role("button", name="Start").click()
            handle.focus()
        for done in range(1, moves + 1):
            page.keyboard.press(walk.key())
            page.wait_for_function(f"watch.times.length >= {done}", timeout=10_000)
            page.wait_for_timeout(60)
        times = page.evaluate("watch.times")[5:]
        before = count(book)
        heard = book.messages
        handle.focus()
        for _ in range(many):
            page.keyboard.press(walk.key())
            page.wait_for_timeout(15)
        page.wait_for_timeout(1500)
        seen = page.evaluate("[watch.frames, watch.blank]")
        messages = book.messages - heard
        after = count(book)
        return {
            "demo": name,
            "median ms": round(statistics.median(times)),
            "p95 ms": round(statistics.quantiles(times, n=20)[-1]),
            "max ms": round(max(times)),
            "blank frames": f"{seen[1]} of {seen[0]}",
            "figures": f"{after[0] - before[0]:+d}",
            "widgets": f"{after[1] - before[1]:+d}",
            "messages a move": round(messages / max(many, 1), 1),
            "kernel memory": f"{(after[2] - before[2]) / 1e6:+.1f} MB",
            "page memory": f"{(after[3] - before[3]) / 1e6:+.1f} MB",
        }
    finally:
        book.close()


class Walk:
    """Right until the end of the slider, then left until its start, and so on."""

    def __init__(self, handle) -> None:
        track = handle.evaluate("e => [e.ariaValueMin, e.ariaValueMax, e.ariaValueNow].map(Number)")
        self.handle, (self.low, self.high, _), self.right = handle, track, True

    def key(self) -> str:
        now = float(self.handle.get_attribute("aria-valuenow"))
        if now >= self.high - 1e-6:
            self.right = False
        elif now <= self.low + 1e-6:
            self.right = True
        return "ArrowRight" if self.right else "ArrowLeft"


def count(book: Book) -> list[int]:
    """Figures, widgets and bytes of the kernel; bytes of the page's script heap."""
    session = book.context.new_cdp_session(book.page)
    session.send("HeapProfiler.collectGarbage")
    heap = session.send("Runtime.getHeapUsage")["usedSize"]
    session.detach()
    return [*(int(number) for number in book.run_cell(2).split()), int(heap)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--moves", type=int, default=60)
    parser.add_argument("--many", type=int, default=500)
    parser.add_argument("--only", default="", help="demos whose name contains this")
    args = parser.parse_args()
    if reason := missing():
        sys.exit(f"cannot measure: {reason}")
    import widget_demos

    load = f"load {os.getloadavg()[0]:.1f}"
    print(f"{platform.machine()}, {os.cpu_count()} cores, {load}, Python {platform.python_version()}\n")
    names = [name for name in [*widget_demos.ALL, RUNNING] if args.only in name]
    with tempfile.TemporaryDirectory() as root:
        lab = Lab(Path(root))
        try:
            with open_browser() as browser:
                for index, name in enumerate(names):
                    row = measure(browser, lab, name, args.moves, args.many)
                    if not index:
                        print("| " + " | ".join(row) + " |\n|" + "---|" * len(row))
                    print("| " + " | ".join(map(str, row.values())) + " |", flush=True)
        finally:
            lab.stop()
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
