"""JupyterLab in a headless Chromium, as a reader sees it: shared by the browser tests and the latency benchmark."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

REPO = Path(__file__).resolve().parents[2]
DEMOS = "notebooks/widget_demos.ipynb"  # written by the fixture: every explorer once
LIVE = "notebooks/live_{}.ipynb"  # written by the fixture, twice: live training, and a cell that reads its records
EXPLORERS = (
    "threshold",
    "scarcity",
    "weights_of_two",
    "weights_of_three",
    "dashboard",
    "logits",
    "gradients",
)
LOCAL = ("127.0.0.1", "localhost", "::1", "")
NOWHERE = "http://127.0.0.1:9"  # nobody listens on the discard port: a kernel that fetches something fails
SETTINGS = {
    # every cell in the page, nothing written back, no news fetched
    "notebook-extension/tracker": {"windowingMode": "none"},
    "docmanager-extension/plugin": {"autosave": False},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
SETUP = (
    f"# @title Setup\nimport sys; sys.path[:0] = ['..', {str(REPO / 'tests' / 'browser')!r}]\n"
    "import widget_demos\n"
    "from mtl_helpers.notebook import start; start()"
)
GUESSES = (
    "asked = widget_demos.guess('How far?', unit='AUC'); asked",
    "named = widget_demos.guess('Who?', choices=['click', 'purchase']); named",
    "print(asked.answer(0.9).data, named.answer('purchase').data)",
)
BROKEN = """\
from mtl_helpers.widgets import Explorer, dropdown, figure, slider
fig = figure(2)
line, = fig.subplots().plot([0], [0], "o", animated=True)

def show(state):
    line.set(data=([0], [0.04 * (1 - state["w"])]), color=state["color"], markersize=20 if state["big"] else 5)
    reciprocal = 1 / round(1 - state["w"], 6)
    return f"1 / (1 - w) is {reciprocal:.2f}, a {'big' if state['big'] else 'small'} {state['color']} point"

controls = [slider("w", "weight", 0, 1, 0.9, step=0.1), dropdown("color", "color", ["red", "blue"])]
controls += [dropdown("big", "big", [False, True])]
Explorer(fig, controls, show, title="An update that fails at w = 1")"""
NOTHING_SLEEPS_LONGER = 600  # ms; a live training that runs draws several pictures in that time
CHROMIUM = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)


def missing() -> str:
    """Why the browser tests cannot run here, or nothing."""
    try:
        import jupyterlab  # noqa: F401
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        return f"{error.name} is not installed"
    if chromium() is None:
        with sync_playwright() as play:
            if not Path(play.chromium.executable_path).exists():
                return (
                    "no Chromium: apt-get install chromium, or playwright install chromium, or set CHROMIUM"
                )
    return ""


def chromium() -> str | None:
    """The browser of the system, if any; otherwise Playwright's own is used."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    return found or shutil.which("google-chrome")


class Lab:
    """A JupyterLab server over ``root``, which gets copies of the notebooks and links to package and data."""

    def __init__(self, root: Path, **environment: str) -> None:
        self.root = root
        for name in ("mtl_helpers", "datasets"):
            if (REPO / name).exists() and not (root / name).exists():
                (root / name).symlink_to(REPO / name)
        # copies, results and all, so that nothing is written into the repository
        shutil.copytree(
            REPO / "notebooks",
            root / "notebooks",
            ignore=shutil.ignore_patterns("source", ".*"),
            dirs_exist_ok=True,
        )
        home = root / ".lab"
        for name, values in SETTINGS.items():
            folder, plugin = name.split("/")
            path = home / "settings/@jupyterlab" / folder / f"{plugin}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.token = secrets.token_hex(16)
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        env = os.environ | threads | environment | {
            "JUPYTER_CONFIG_DIR": str(home / "config"),
            "JUPYTER_DATA_DIR": str(home / "data"),
            "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
            "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
            "IPYTHONDIR": str(home / "ipython"),
            "http_proxy": NOWHERE,
            "https_proxy": NOWHERE,
            "no_proxy": "127.0.0.1,localhost",
        }  # fmt: skip
        env.pop("MPLBACKEND", None)
        self.log = home / "lab.log"
        command = [
            sys.executable,
            "-m",
            "jupyterlab",
            "--no-browser",
            "--allow-root",
            "--expose-app-in-browser",
        ]
        options = {
            "ServerApp.ip": "127.0.0.1",
            "ServerApp.port": self.port,
            "ServerApp.port_retries": 0,
            "ServerApp.root_dir": root,
            "IdentityProvider.token": self.token,
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *(f"--{key}={value}" for key, value in options.items())],
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._wait()

    def _wait(self, seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(
                    f"http://127.0.0.1:{self.port}/api?token={self.token}", timeout=1
                ).close()
                return
            time.sleep(0.1)
        self.stop()
        raise RuntimeError(f"JupyterLab did not start:\n{self.log.read_text()[-3000:]}")

    def stop(self) -> None:
        """Ends the server, and its kernels with it."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def url(self, notebook: str) -> str:
        return f"http://127.0.0.1:{self.port}/lab/workspaces/{secrets.token_hex(4)}/tree/{notebook}?token={self.token}"


def write_notebook(path: Path, cells: list[str]) -> None:
    """A notebook of code cells; those with a title are folded."""
    import nbformat

    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    for cell in book.cells:
        if cell.source.startswith("# @title "):
            cell.metadata["jupyter"] = {"source_hidden": True}
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)


@contextlib.contextmanager
def open_browser() -> Iterator:
    """A headless Chromium that cannot resolve any host but this machine."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        resolver = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"
        browser = play.chromium.launch(executable_path=chromium(), args=[*CHROMIUM, resolver])
        yield browser
        browser.close()


class Book:
    """A notebook open in JupyterLab: run it, press its sliders, see its pictures."""

    def __init__(self, browser, lab: Lab, path: str) -> None:
        self.context = browser.new_context(viewport={"width": 1300, "height": 1000})
        self.foreign: list[str] = []
        self.context.route("**/*", self._guard)
        self.page = self.context.new_page()
        self.messages = 0  # that came from the server over web sockets
        self.page.on("websocket", self._listen)
        self.page.goto(lab.url(path))
        self.page.wait_for_function(
            "window.jupyterapp?.shell.currentWidget?.sessionContext?.isReady", timeout=90_000
        )
        self.page.evaluate(
            """async () => {
                const panel = jupyterapp.shell.currentWidget;
                await panel.context.ready;
                await panel.sessionContext.session.kernel.info }"""
        )
        self.page.wait_for_function(
            "jupyterapp.shell.currentWidget.content.widgets.length > 0", timeout=30_000
        )

    def close(self) -> None:
        """Ends its kernel and closes the page."""
        with contextlib.suppress(Exception):
            self.page.evaluate("jupyterapp.shell.currentWidget.sessionContext.shutdown()")
        self.context.close()

    def _note(self, url: str) -> bool:
        local = urlsplit(url).scheme in ("data", "blob", "about") or urlsplit(url).hostname in LOCAL
        if not local:
            self.foreign.append(url)
        return local

    def _listen(self, socket) -> None:
        self._note(socket.url)

        def heard(_payload) -> None:
            self.messages += 1

        socket.on("framereceived", heard)

    def _guard(self, route) -> None:
        if self._note(route.request.url):
            route.continue_()
        else:
            route.abort()

    # running

    def run_all(self, timeout: float = 600, restart: bool = False) -> None:
        """Runs every cell and waits for the last; ``restart`` as the menu's "Restart Kernel and Run All Cells"."""
        self.page.set_default_timeout(timeout * 1000)
        if restart:
            self.page.evaluate("jupyterapp.shell.currentWidget.sessionContext.restartKernel()")
        self.page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells') }")
        self._until_idle(timeout)
        self.page.set_default_timeout(30_000)

    def run_cell(self, index: int, timeout: float = 60) -> str:
        """Runs one cell and returns what it printed."""
        self.page.evaluate(
            """async index => {
                jupyterapp.shell.currentWidget.content.activeCellIndex = index;
                await jupyterapp.commands.execute('notebook:run-cell') }""",
            index,
        )
        self._until_idle(timeout)
        outputs = self.cells()[index]["outputs"]
        return "".join("".join(output["text"]) for output in outputs if output.get("name") == "stdout")

    def _until_idle(self, timeout: float) -> None:
        """Every code cell has run, or one raised, after which the rest never runs."""
        self.page.wait_for_function(
            """() => {
                const cells = jupyterapp.shell.currentWidget.content.widgets.filter(
                    cell => cell.model.type === 'code' && cell.model.sharedModel.getSource().trim());
                if (cells.some(cell => cell.model.executionState === 'running')) return false;
                const raised = cell => cell.model.sharedModel.getOutputs().some(o => o.output_type === 'error');
                const done = cell => cell.model.executionCount !== null && !cell.promptNode.textContent.includes('*');
                return cells.some(raised) || cells.length && cells.every(done) }""",
            timeout=timeout * 1000,
        )

    def bars(self) -> list[str]:
        """What stands beside each folded cell: its number, or nothing before it has run."""
        return self.page.locator(".jp-InputPlaceholder .jp-InputPrompt").all_inner_texts()

    def cells(self) -> list[dict]:
        return self.page.evaluate("jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells")

    def errors(self) -> list[str]:
        """What cells raised unasked, and errors shown under demos."""
        raised = [
            f"{output['ename']}: {output['evalue']}"
            for cell in self.cells()
            if cell["cell_type"] == "code" and "raises-exception" not in cell["metadata"].get("tags", [])
            for output in cell["outputs"]
            if output["output_type"] == "error"
        ]
        return raised + self.page.locator(".mtl-error").all_text_contents()

    # demos

    def demos(self):
        """The boxes that hold a picture and its controls."""
        return self.page.locator(".widget-vbox:has(> .widget-html .mtl-demo)")


def picture(demo) -> str:
    """Source of a demo's picture, and what stands above it."""
    above = demo.locator(".mtl-above")
    return drawing(demo).get_attribute("src") + (above.inner_html() if above.count() else "")


def drawing(demo):
    """The demo's own picture; those of products have no text of their own."""
    return demo.locator(".mtl-demo img:not([alt=''])")


def reading(demo) -> str:
    return demo.locator(".mtl-demo figcaption").inner_text()


def wait_until(condition: Callable[[], bool], timeout: float = 15) -> bool:
    """True once the condition holds."""
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return False


def wait_for_change(demo, before: str) -> bool:
    """True once the picture is another one."""
    return wait_until(lambda: picture(demo) != before)
