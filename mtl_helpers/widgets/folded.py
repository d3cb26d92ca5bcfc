"""The numbers of folded cells, which JupyterLab does not show: nobody could see whether one has run."""

import json
import os
import sys
from typing import Any

from IPython import get_ipython
from IPython.display import HTML, display

__all__ = ["number_folded_cells"]

SCRIPT = """<script>{
const book = document.currentScript.closest(".jp-Notebook") ?? document.body, numbers = %s
const write = () => book.querySelectorAll(".jp-InputPlaceholder").forEach(bar => {
    const number = numbers[bar.querySelector(".jp-PlaceholderText").textContent.trim()] ?? ""
    if (bar.firstElementChild.textContent !== number) bar.firstElementChild.textContent = number })
book.foldedBars?.disconnect()
book.foldedBars = new MutationObserver(write)
book.foldedBars.observe(book, {childList: true, subtree: true})
write()
}</script>"""


def number_folded_cells() -> None:
    """From now on a cell with a title has its number beside its bar once it has run: in a kernel, not on Colab."""
    shell = get_ipython()
    if not hasattr(shell, "kernel") or "google.colab" in sys.modules or os.environ.get("MTL_BUILD"):
        return
    script = display(HTML(""), display_id=True)

    def write(_result: Any) -> None:
        cells = enumerate(shell.history_manager.input_hist_raw)
        firsts = {cell.partition("\n")[0].strip(): f"[{number}]:" for number, cell in cells}
        titles = {first: number for first, number in firsts.items() if first.startswith("# @title ")}
        script.update(HTML(SCRIPT % json.dumps(titles)))

    shell.events.register("post_run_cell", write)
