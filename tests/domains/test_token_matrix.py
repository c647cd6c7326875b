"""Tokens as a matrix: dense by address, by place, by counts; its PCA is fitted on training rows alone."""

from importlib import import_module

import numpy as np
import pytest
import torch

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.errors import ConsilienceError
from consilience.domains.preparation import Prepared, prepare
from consilience.domains.probes import probe
from consilience.domains.token_matrix import pca_of_tokens, token_matrix


def test_genes_stand_at_their_address() -> None:
    spec = TokenSpec(
        name="cells",
        channels=1,
        addresses=4,
        value_likelihood="negative-binomial",
        value_shift=1.0,
        value_scale=2.0,
    )
    tokens = TokenBatch(
        length=torch.tensor([2, 1]),
        values=torch.tensor([[[3.0], [7.0]], [[1.0], [99.0]]]),
        address=torch.tensor([[0, 3], [2, 0]]),
    )
    wanted = (np.log1p([[3.0, 0, 0, 7], [0, 0, 1, 0]]) - 1) / 2
    assert np.allclose(token_matrix(tokens, spec), wanted)


def test_patches_stand_at_their_place_without_what_was_not_measured() -> None:
    spec = TokenSpec(name="spectra", channels=2, addresses=2, coordinates=1, weighted=True, value_scale=0.5)
    tokens = TokenBatch(
        length=torch.tensor([3, 2]),
        values=torch.arange(12.0).reshape(2, 3, 2),
        weight=torch.tensor([[[1.0, 1], [0, 1], [1, 1]], [[1, 1], [1, 1], [1, 1]]]),
        address=torch.tensor([[0, 1, 1], [0, 1, 0]]),
        positions=torch.tensor([[[1.0], [2], [3]], [[1], [2], [0]]]),
    )
    by_place = [[0, 2, 0, 6, 8, 10], [12, 14, 16, 18, 0, 0]]
    assert np.allclose(token_matrix(tokens, spec), np.hstack([by_place, [[1, 2], [1, 1]]]))
    shifted = TokenBatch(**{**vars(tokens), "positions": tokens.positions + torch.tensor([[[0.0]], [[5]]])})
    assert np.allclose(token_matrix(shifted, spec)[:, 6:9], [[1, 2, 3], [6, 7, 0]]), (
        "places that differ count"
    )


def test_symbols_are_counted_without_padding() -> None:
    spec = TokenSpec(name="text", vocabulary=3, coordinates=1)
    tokens = TokenBatch(
        length=torch.tensor([4, 2]),
        ids=torch.tensor([[0, 2, 2, 1], [1, 1, 0, 0]]),
        positions=torch.zeros(2, 4, 1),
    )
    assert token_matrix(tokens, spec).tolist() == [[1, 1, 2], [0, 2, 0]]


@pytest.fixture(scope="module", params=["cells", "galaxies", "molecules", "points"])
def prepared(request) -> Prepared:
    """300 records of each science as its quick study takes them."""
    domain = import_module(f"consilience.domains.{request.param}.domain").DOMAIN
    collection = domain.bundled(300) if request.param == "galaxies" else domain.bundled()
    return prepare(domain, collection, tokenizer=domain.quick.tokenizer, limit=300)


def test_pca_of_every_science_is_readable(prepared: Prepared) -> None:
    row = pca_of_tokens(prepared.tokenizer, prepared.collection, prepared.split.train)
    assert row.method == "linear" and row.name == f"PCA({row.features.shape[1]}) of tokens"
    assert row.features.shape[0] == len(prepared.collection) and row.features.shape[1] <= 96
    assert np.isfinite(row.features).all()
    few = pca_of_tokens(prepared.tokenizer, prepared.collection, prepared.split.train, components=20)
    named = prepared.domain.quick.tasks[0]
    task = next(task for task in prepared.domain.tasks(prepared.collection) if task.name == named)
    result = probe(few.features, prepared.collection.labels[task.label], prepared.split, task.kind)
    assert result.metrics["macro_f1" if task.kind == "classification" else "r2"] > 0.15


def test_only_training_rows_are_fitted(prepared: Prepared) -> None:
    """Other held-out records do not move the features of the rest."""
    train, held = prepared.split.train, prepared.split.test
    some = np.concatenate([train, held[: len(held) // 2]])
    inner = prepared.collection.take(some)
    whole = pca_of_tokens(prepared.tokenizer, prepared.collection, train, components=5)
    part = pca_of_tokens(prepared.tokenizer, inner, np.arange(len(train)), components=5)
    assert np.allclose(np.abs(whole.features[some]), np.abs(part.features), atol=2e-2)


def test_directions_that_training_never_saw_are_left_out(prepared: Prepared) -> None:
    row = pca_of_tokens(prepared.tokenizer, prepared.collection, prepared.split.train)
    spread = row.features[prepared.split.train].std(0)
    assert (spread > 1e-5 * spread.max()).all()


def test_too_few_records(prepared: Prepared) -> None:
    with pytest.raises(ConsilienceError, match="two training records"):
        pca_of_tokens(prepared.tokenizer, prepared.collection, prepared.split.train[:1])


def test_every_science_has_baselines(prepared: Prepared) -> None:
    domain, n = prepared.domain, len(prepared.collection)
    rows = domain.baselines(prepared.collection, prepared.split.train)
    name, features = domain.baseline(prepared.collection, prepared.split.train)
    assert rows[0].name == name and rows[0].method == "linear" and np.array_equal(rows[0].features, features)
    assert all(row.features.shape[0] == n for row in rows)
    methods = {
        "molecules": ["linear", "forest"],
        "galaxies": ["linear", "boosted-trees"],
        "points": ["linear", "linear"],
    }
    assert [row.method for row in rows] == methods.get(domain.name, ["linear"])
    assert len(rows) == domain.classical
