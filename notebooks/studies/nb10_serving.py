"""Notebook 10: every architecture exported, and 200 requests to a server whose model is exchanged.

    python notebooks/studies/nb10_serving.py        # on one core about three minutes; needs the extra `production`

``10_artefacts.csv``: fourteen architectures, untrained (weights decide neither size nor time), exported by torch.export
and as ONNX for any number of rows; the largest gap of a logit to the model's own on 1 and on 1,000 rows; median and
99th percentile of an answer for 1,000 rows, on one thread. ``10_requests.csv``: when each request to the app of the
notebook began, how long it took, and which model answered.
"""

from __future__ import annotations

import tempfile
import threading
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from study import ROOT, command_line, store
from torch import Tensor, nn

from mtl_helpers import data as shop_data
from mtl_helpers import models
from mtl_helpers.data import SHOP_CATEGORICAL, SHOP_NUMERIC, SHOP_TASKS
from mtl_helpers.production.serving import Ranker, export_onnx, export_program

Rows = tuple[Tensor, Tensor]


def architectures(shop: shop_data.Shop, rows: int) -> Iterator[tuple[str, Callable[[], nn.Module], Rows]]:
    """Name, maker, and so many encoded rows, of each architecture of the course."""
    frame = shop_data.shop_frame(shop).tail(8000)
    parts = shop_data.shop_splits(frame)
    ready = shop_data.prepare(parts, SHOP_TASKS, SHOP_NUMERIC, SHOP_CATEGORICAL)
    given, chain = (ready.schema, ready.tasks), {"chain": ("click", "purchase")}
    numeric, codes = ready.test.numeric[:rows], ready.test.categorical[:rows]
    last = parts["test"].head(rows)
    yield "SingleTask", lambda: models.SingleTask(ready.schema, ready.tasks[0]), (numeric, codes)
    others = {"ESMM": chain, "AITM": chain, "PEPNet": {"scene": "surface"}}
    for name in "SharedBottom CrossStitch MMoE PLE ESMM AITM STEM PEPNet GatedBottom".split():
        cls, how = getattr(models, name), others.get(name, {})
        yield name, lambda cls=cls, how=how: cls(*given, **how), (numeric, codes)
    events = torch.randint(0, 5, (len(codes), 5))
    longer = torch.cat([numeric, torch.rand(len(codes), 10)], 1), torch.cat([codes, events], 1)
    yield "HistoryBottom", lambda: models.HistoryBottom(*given, length=5), longer
    text = torch.tensor(shop_data.tfidf_vectors(shop_data.text_of(shop.items), 32)).float()
    item = torch.from_numpy(last["item_id"].to_numpy())[:, None]
    content = lambda: models.ContentBottom(*given, {"text": text}, fusion="gate")  # noqa: E731
    yield "ContentBottom", content, (numeric, torch.cat([codes, item], 1))
    events, session = shop_data.session_events(frame, 20)
    session = torch.from_numpy(pd.Series(session, frame.index)[last.index].to_numpy())[:, None]
    kinds = shop_data.product_codes(shop_data.clean_items(shop.items), ("sub_category", "brand"))
    behind = numeric, torch.cat([codes, session, item + 1], 1)
    yield "SequenceBottom", lambda: models.SequenceBottom(*given, events, kinds), behind
    case = models.case_data(parts, len(shop.items))
    table = models.item_table(shop, parts["train"])
    yield (
        "CaseModel",
        lambda: models.case_model(case, table),
        (case.test.numeric[:rows], case.test.categorical[:rows]),
    )


@torch.no_grad()
def gap(ours: Callable, theirs: Callable, rows: Rows) -> float:
    """The largest difference of a logit, on one row and on all."""
    found = [(ours(*some), theirs(*some)) for some in (rows, tuple(x[:1] for x in rows))]
    return max((a[name] - b[name]).abs().max().item() for a, b in found for name in a)


def milliseconds(job: Callable[[], object], times: int) -> tuple[float, float]:
    """Median and 99th percentile of so many runs, after one that does not count."""
    seconds = timeit.repeat(job, number=1, repeat=times + 1)[1:]
    return tuple(1000 * np.percentile(seconds, (50, 99)))


def artefact(name: str, model: nn.Module, rows: Rows, folder: Path, times: int) -> dict:
    """A row of the first table."""
    few = tuple(x[:64] for x in rows)
    program = export_program(model, *few)
    torch.export.save(program, folder / "model.pt2")
    again = torch.export.load(folder / "model.pt2").module()
    onnx = export_onnx(model, *few, folder / "model.onnx")
    with torch.inference_mode():
        eager, engine = milliseconds(lambda: model(*rows), times), milliseconds(lambda: onnx(*rows), times)
    found = {"model": name, "parameters": models.count_parameters(model)}
    found["saved_kb"] = sum(t.numel() * t.element_size() for t in model.state_dict().values()) / 1000
    found |= {"pt2_kb": (folder / "model.pt2").stat().st_size / 1000}
    found |= {"onnx_kb": (folder / "model.onnx").stat().st_size / 1000}
    found |= {"program_gap": gap(model, again, rows), "onnx_gap": gap(model, onnx, rows)}
    found |= dict(zip(("eager_p50", "eager_p99"), eager, strict=True))
    return found | dict(zip(("onnx_p50", "onnx_p99"), engine, strict=True))


def from_page(name: str) -> Callable:
    """A function as it stands in the notebook; its cell runs alone."""
    text = (ROOT / "notebooks" / "source" / "10_to_production.py").read_text(encoding="utf-8")
    cell = next(cell for cell in text.split("\n# %%") if f"\ndef {name}(" in cell)
    space: dict = {}
    exec(compile(cell.partition("\n")[2], "the notebook", "exec", dont_inherit=True), space)
    return space[name]


def requests(shop: shop_data.Shop, folder: Path, count: int) -> pd.DataFrame:
    """The second table."""
    frame = shop_data.shop_frame(shop).tail(20_000)
    ready = shop_data.prepare(shop_data.shop_splits(frame), SHOP_TASKS, SHOP_NUMERIC, SHOP_CATEGORICAL)
    people = frame["user_id"].drop_duplicates().head(20).tolist()
    rows, rankers = models.candidates(shop, people), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        fresh = models.SharedBottom(ready.schema, ready.tasks)
        rankers.append(models.save_model(folder / str(seed), fresh, ready.encoder))
    served, hammer = from_page("served"), from_page("hammer")
    app = from_page("make_app")(Ranker(rankers[0], rows))

    def exchange() -> None:
        app.state.ranker = Ranker(rankers[1], rows)

    bodies = [{"user": people[i % len(people)], "k": 10} for i in range(count)]
    with served(app) as address:
        hammer(f"{address}/rank", bodies[:8])
        other = threading.Timer(0.15, exchange)
        other.start()
        seen = hammer(f"{address}/rank", bodies)
        other.join()
        after = hammer(f"{address}/rank", bodies[:8])
    after["second"] += seen["second"].max()
    return pd.concat([seen, after], ignore_index=True)


if __name__ == "__main__":
    options = command_line(__doc__, rows=1000, times=300, requests=200).parse_args()
    torch.set_num_threads(1)
    shop, found = shop_data.load_shop(), []
    with tempfile.TemporaryDirectory() as place:
        for name, make, rows in architectures(shop, options.rows):
            torch.manual_seed(0)
            found.append(artefact(name, make().eval(), rows, Path(place), options.times))
            print(found[-1], flush=True)
        store(options.out / "10_artefacts.csv", "nb10_serving.py", pd.DataFrame(found), float_format="%.4g")
        asked = requests(shop, Path(place), options.requests)
    store(options.out / "10_requests.csv", "nb10_serving.py", asked, float_format="%.5g")
