"""Exercises of notebook 09: neighbours that exist by then, LoRA, a causal mask, semantic ids."""

import numpy as np
import torch

from mtl_helpers.exercises import Case, exercise


def neighbours(vectors, product, on_sale, k):
    # Cosine: both vectors at length 1, then their product.
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    near = unit @ unit[product]
    # What is not on sale yet cannot be shown, and a product is no neighbour of itself.
    near[~on_sale] = -np.inf
    near[product] = -np.inf
    return np.argsort(-near, kind="stable")[:k]


def catalogues(rng):
    for n, k in ((12, 3), (40, 5)):
        vectors = rng.normal(size=(n, 6)) * rng.uniform(0.2, 5, (n, 1))
        yield vectors, int(rng.integers(n)), rng.random(n) < 0.6, k
    yield Case((rng.normal(size=(9, 3)) * 4, 2, np.arange(9) != 2, 4), "the product itself comes later")


def _top(near, product, on_sale, k):
    allowed = on_sale & (np.arange(len(near)) != product)
    return np.argsort(-np.where(allowed, near, -np.inf), kind="stable")[:k]


def lora(x, weight, a, b, scale):
    # First down to r numbers, then up again: the (out, in) matrix B A is never made.
    return x @ weight.T + scale * (x @ a.T) @ b.T


def layers(rng):
    for n, n_in, n_out, r in ((5, 6, 4, 2), (3, 4, 7, 1)):
        sizes = ((n, n_in), (n_out, n_in), (r, n_in), (n_out, r))
        yield *(torch.tensor(rng.normal(size=size)).float() for size in sizes), 4.0
    x, weight = torch.randn(3, 4), torch.randn(5, 4)
    yield Case((x, weight, torch.empty(0, 4), torch.empty(5, 0), 8.0), "rank 0: the frozen layer")


def may_look(there):
    length = there.shape[1]
    # Row i of a lower triangle: itself and what came before it.
    past = torch.ones(length, length, dtype=torch.bool, device=there.device).tril()
    # Padding is looked at by nobody but itself: a softmax needs one place.
    itself = torch.eye(length, dtype=torch.bool, device=there.device)
    return past & there[:, None, :] | itself


def histories(rng):
    for n, length in ((3, 4), (2, 6)):
        yield (torch.tensor(np.arange(length) >= rng.integers(1, length, (n, 1))),)
    yield Case((torch.zeros(2, 3, dtype=torch.bool),), "no event at all")


def _tril(there, diagonal=0):
    return torch.ones(there.shape[1], there.shape[1], dtype=torch.bool).tril(diagonal).to(there.device)


def semantic_ids(vectors, books):
    rest, codes = vectors, []
    for book in books:
        # The nearest code vector of this level ...
        code = ((rest[:, None] - book) ** 2).sum(-1).argmin(1)
        codes.append(code)
        # ... and what it leaves over is the next level's to tell.
        rest = rest - book[code]
    return np.stack(codes, 1)


def vectors_and_books(rng):
    for n, levels in ((6, 2), (15, 3)):
        yield rng.normal(size=(n, 4)), [rng.normal(size=(5, 4)) / 2**level for level in range(levels)]


EXERCISES = (
    exercise(
        neighbours,
        catalogues,
        lambda v, p, s, k: neighbours(v, p, s | True, k),
        "Products that are not on sale yet are among your neighbours: that is the future.",
        lambda v, p, s, k: np.append(p, neighbours(v, p, s, k - 1)),
        "The nearest product is the product itself. Leave it out.",
        lambda v, p, s, k: _top(v @ v[p], p, s, k),
        "A long vector wins without being near. Divide each by its length: that is the cosine.",
        lambda v, p, s, k: _top(-(v @ v[p]) / np.linalg.norm(v, axis=1), p, s, k),
        "You return the products that are farthest away.",
        hints=(
            "Lengths first, then products, then who may be shown at all.",
            "`vectors / np.linalg.norm(vectors, axis=1, keepdims=True)`; what may not be shown gets `-np.inf`.",
            "`near = unit @ unit[product]`, -inf at `~on_sale` and at `product`, then `np.argsort(-near)[:k]`.",
        ),
    ),
    exercise(
        lora,
        layers,
        lambda x, w, a, b, s: x @ w.T + (x @ a.T) @ b.T,
        "The scale is missing.",
        lambda x, w, a, b, s: s * (x @ a.T) @ b.T,
        "You return the update alone. The frozen layer still answers, too.",
        lambda x, w, a, b, s: s * (x @ w.T + (x @ a.T) @ b.T),
        "You scale the frozen layer, too: it must stay as it is.",
        hints=(
            "Two paths from x to y: the frozen one, and one through r numbers.",
            "`x @ a.T` is (n, r); times `b.T` it is (n, out).",
            "`x @ weight.T + scale * (x @ a.T) @ b.T`.",
        ),
    ),
    exercise(
        may_look,
        histories,
        lambda t: t[:, None, :].expand(-1, t.shape[1], -1) | torch.eye(t.shape[1], dtype=torch.bool),
        "An event looks at those after it: the future. Keep the lower triangle.",
        lambda t: _tril(t).expand(len(t), -1, -1),
        "Padding is looked at as if it were an event.",
        lambda t: _tril(t) & t[:, None, :],
        "A padded place may look nowhere, and its softmax is NaN. Let each place look at itself.",
        lambda t: _tril(t).T & t[:, None, :] | torch.eye(t.shape[1], dtype=torch.bool),
        "The triangle is upside down: each event sees the future alone.",
        hints=(
            "Two conditions on the place that is looked at: not later, and there. And one exception.",
            "`torch.ones(L, L, dtype=torch.bool).tril()` is the first, `there[:, None, :]` the second.",
            "`past & there[:, None, :] | torch.eye(L, dtype=torch.bool)`.",
        ),
    ),
    exercise(
        semantic_ids,
        vectors_and_books,
        lambda v, books: np.stack([((v[:, None] - book) ** 2).sum(-1).argmin(1) for book in books], 1),
        "Every level codes the whole vector. After the first, code what is left over.",
        lambda v, books: semantic_ids(v, books)[:, ::-1],
        "The coarsest code comes first.",
        lambda v, books: semantic_ids(v, books).T,
        "A row for each product, a column for each level: yours is turned.",
        hints=(
            "A loop over the levels, and one array that shrinks.",
            "The nearest row of `book` to each row of `rest`; then subtract it.",
            "`code = ((rest[:, None] - book) ** 2).sum(-1).argmin(1)`, then `rest = rest - book[code]`.",
        ),
    ),
)
