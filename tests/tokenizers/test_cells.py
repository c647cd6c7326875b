"""CellTokenizer: laws, slow references, determinism, and every bad input with its message."""

import json
import pickle
import re

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.core.batch import TokenBatch
from consilience.core.errors import ConsilienceError, UnreadableRecordError
from consilience.tokenizers.cell_genes import clean_genes, match_genes
from consilience.tokenizers.cell_rows import Expressed, matched_zeros
from consilience.tokenizers.cells import CellTable, CellTokenizer, StoredCounts

GENES = np.array([f"G{i}" for i in range(60)])


def make_table(n: int = 300, genes: np.ndarray = GENES, seed: int = 0, rate: float = 0.8) -> CellTable:
    """Poisson counts with very different gene means; every cell has at least one count."""
    rng = np.random.default_rng(seed)
    mean = rate * np.exp(rng.normal(0, 1.5, len(genes)))
    counts = rng.poisson(mean * rng.lognormal(0, 0.5, (n, 1)))
    counts[counts.sum(1) == 0, 0] = 1
    names = np.array([f"cell-{i}" for i in range(n)])
    return CellTable(counts=sp.csr_array(counts.astype(np.float32)), genes=genes, names=names)


def dense(table: CellTable) -> np.ndarray:
    """(n, G) counts in the order of sorted gene names."""
    return table.load().counts.toarray()[:, np.argsort(table.genes.astype(str))]


def assert_same(first: TokenBatch, second: TokenBatch) -> None:
    """Equal to the bit."""
    for name in ("length", "ids", "values", "address", "positions", "given", "exposure"):
        a, b = getattr(first, name), getattr(second, name)
        assert (a is None) == (b is None), name
        assert a is None or torch.equal(a, b), name


@pytest.fixture(params=["counts", "ranks"])
def view(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- laws ------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(
        st.lists(st.sampled_from([0, 0, 1, 2, 7, 5000]), min_size=5, max_size=5), min_size=1, max_size=9
    ),
    seed=st.integers(0, 3),
)
def test_counts_view_is_lossless(counts: list[list[int]], seed: int) -> None:
    matrix = np.array(counts, dtype=np.float32)
    matrix[matrix.sum(1) == 0, 0] = 3
    names = np.random.default_rng(seed).permutation(["a", "b", "c", "d", "e"])
    table = CellTable(counts=sp.csr_array(matrix), genes=names)
    tokenizer = CellTokenizer.fit(table)
    back = tokenizer.decode(tokenizer.encode(table))
    expressed = np.sort(names[matrix.any(0)])
    assert sorted(back.genes) == expressed.tolist()
    np.testing.assert_array_equal(dense(back), dense(table)[:, np.isin(np.sort(names), expressed)])
    np.testing.assert_array_equal(back.total_counts(), matrix.sum(1))


def test_tokens_depend_on_nothing_but_the_cell(view: str) -> None:
    table = make_table(300)  # more than two steps of `encode`
    tokenizer = CellTokenizer.fit(table, view=view, max_genes=20)
    whole = tokenizer.encode(table)
    order = np.random.default_rng(1).permutation(len(table))
    assert_same(tokenizer.encode(table.take(order)).take(np.argsort(order)), whole)
    for i in (0, 127, 128, 299):
        assert_same(tokenizer.encode(table[i]), whole.take([i]).trim())
    shuffled = np.random.default_rng(2).permutation(len(GENES))
    columns = CellTable(counts=table.counts[:, shuffled], genes=GENES[shuffled])
    assert_same(tokenizer.encode(columns), whole)


def test_state_is_json_and_complete(view: str) -> None:
    table = make_table()
    tokenizer = CellTokenizer.fit(table, view=view, max_genes=25, max_vocabulary=40)
    again = CellTokenizer.from_state(json.loads(json.dumps(tokenizer.state())))
    assert again.spec == tokenizer.spec
    assert_same(again.encode(table), tokenizer.encode(table))
    seeds = [torch.Generator().manual_seed(3) for _ in range(2)]
    assert_same(
        again.template(4, generator=seeds[0]),
        tokenizer.template(4, generator=seeds[1]),
    )


def test_nothing_is_densified(view: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = make_table()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a sparse matrix was made dense")

    for name in ("toarray", "todense"):
        monkeypatch.setattr(sp.csr_array, name, refuse)
    tokenizer = CellTokenizer.fit(table, view=view)
    tokenizer.decode(tokenizer.encode(table, generator=torch.Generator().manual_seed(0)))
    tokenizer.check(table)
    tokenizer.lengths(table)


# --- slow references -------------------------------------------------------------------------------------


def test_fit_matches_numpy() -> None:
    table = make_table()
    found = CellTokenizer.fit(table).statistics
    counts = table.counts.toarray().astype(np.float64)
    normal = counts / counts.sum(1, keepdims=True) * 1e4
    order = [int(name[1:]) for name in found.genes]
    np.testing.assert_allclose(found.mean, normal.mean(0)[order], rtol=1e-5)
    assert (np.diff(found.mean) <= 0).all(), "the natural order is descending mean expression"
    median = [np.median(normal[counts[:, gene] > 0, gene]) for gene in order]
    np.testing.assert_allclose(found.median, median, rtol=1e-5)
    logs = np.log1p(counts[counts > 0])
    np.testing.assert_allclose(found.log_count, (logs.mean(), logs.std()), rtol=1e-5)
    np.testing.assert_allclose(found.depth[[0, 50, 100]], np.quantile(counts.sum(1), [0, 0.5, 1]))


def test_cap_keeps_genes_furthest_above_their_mean() -> None:
    table = make_table(200)
    tokenizer = CellTokenizer.fit(table, max_genes=9)
    tokens = tokenizer.encode(table)
    place = {name: i for i, name in enumerate(tokenizer.vocabulary)}
    weight = (1 / tokenizer.statistics.mean).astype(np.float32)
    assert tokens.address is not None and tokens.values is not None
    for row, counts in enumerate(table.counts.toarray()):
        genes = [place[GENES[i]] for i in np.flatnonzero(counts)]
        score = {
            place[GENES[i]]: np.float32(counts[i]) * weight[place[GENES[i]]] for i in np.flatnonzero(counts)
        }
        best = sorted(sorted(genes, key=lambda gene: (-score[gene], gene))[:9])
        assert tokens.address[row, 1 : int(tokens.length[row])].tolist() == [1 + gene for gene in best]


def test_ranks_match_a_stable_sort_with_ties() -> None:
    table = make_table(200, rate=0.3)
    tokenizer = CellTokenizer.fit(table, view="ranks", max_genes=12)
    # Equal medians make many equal scores; the earlier vocabulary gene must win.
    tokenizer.statistics.median[:] = 2.0
    tokens = tokenizer.encode(table)
    place = {name: i for i, name in enumerate(tokenizer.vocabulary)}
    assert tokens.ids is not None and tokens.address is not None
    for row, counts in enumerate(table.counts.toarray()):
        by_gene = {place[GENES[i]]: counts[i] for i in np.flatnonzero(counts)}
        wanted = sorted(sorted(by_gene), key=lambda gene: -by_gene[gene])[:12]
        length = int(tokens.length[row])
        assert tokens.ids[row, :length].tolist() == wanted
        assert tokens.address[row, :length].tolist() == list(range(length))


def test_ranks_use_the_medians() -> None:
    table = make_table(200)
    tokenizer = CellTokenizer.fit(table, view="ranks", max_genes=60)
    tokens, counts = tokenizer.encode(table), table.counts.toarray()
    column = [int(name[1:]) for name in tokenizer.vocabulary]
    assert tokens.ids is not None
    for row in range(0, 200, 17):
        genes = tokens.ids[row, : int(tokens.length[row])].tolist()
        score = [counts[row, column[gene]] / tokenizer.statistics.median[gene] for gene in genes]
        assert (np.diff(score) <= 1e-6 * np.array(score[1:])).all()
        assert len(set(genes)) == int((counts[row] > 0).sum())


def test_vocabulary_limit_keeps_the_most_variable_genes() -> None:
    table = make_table()
    tokenizer = CellTokenizer.fit(table, max_vocabulary=10, order="vocabulary")
    counts = table.counts.toarray()
    variance = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4).var(0)
    wanted = np.sort(np.argsort(-variance)[:10])
    assert tokenizer.vocabulary == tuple(GENES[wanted])
    by_mean = CellTokenizer.fit(table, max_vocabulary=10)
    assert set(by_mean.vocabulary) == set(tokenizer.vocabulary)
    assert by_mean.vocabulary != tokenizer.vocabulary


# --- depth, spec, lengths --------------------------------------------------------------------------------


def test_depth_is_that_of_all_genes_and_readable_for_the_core() -> None:
    table = make_table(400)
    tokenizer = CellTokenizer.fit(table, max_genes=5)
    tokens = tokenizer.encode(table)
    totals = table.total_counts()
    assert tokens.exposure is not None and tokens.values is not None and tokens.given is not None
    np.testing.assert_allclose(tokens.exposure.numpy(), totals / 1e4, rtol=1e-6)
    seen = tokenizer.spec.standardise(tokens.values)[:, 0, 0].numpy()
    np.testing.assert_allclose(
        seen, (np.log(totals) - np.log(totals).mean()) / np.log(totals).std(), atol=1e-4
    )
    assert tokens.given[:, 0].all() and not tokens.given[:, 1:].any()
    half = CellTable(counts=table.counts[:, :30], genes=GENES[:30], depth=totals)
    with_depth = tokenizer.encode(half.take(np.flatnonzero(half.counts.sum(1) > 0)))
    assert with_depth.exposure is not None
    np.testing.assert_allclose(with_depth.exposure.numpy(), totals[half.counts.sum(1) > 0] / 1e4, rtol=1e-6)


def test_value_encoding_reaches_the_spec() -> None:
    table = make_table(50)
    assert CellTokenizer.fit(table).spec.value_encoding == "soft-bins"
    assert CellTokenizer.fit(table, value_encoding="log").spec.value_encoding == "linear"
    assert CellTokenizer.fit(table).spec.value_likelihood == "negative-binomial"


def test_soft_bins_see_every_count() -> None:
    table = make_table(50)
    spec = CellTokenizer.fit(table).spec
    ends = spec.standardise(torch.tensor([0.0, float(table.counts.max())]))
    torch.testing.assert_close(ends, torch.tensor([-3.0, 3.0]))
    spec = CellTokenizer.fit(table, value_encoding="log").spec
    seen = spec.standardise(torch.from_numpy(table.counts.data))
    torch.testing.assert_close(
        torch.stack([seen.mean(), seen.std()]), torch.tensor([0.0, 1.0]), atol=1e-2, rtol=0
    )


def test_lengths_are_exact_or_an_upper_bound(view: str) -> None:
    table = make_table()
    plain = CellTokenizer.fit(table, view=view, zeros="none", max_genes=25)
    np.testing.assert_array_equal(plain.lengths(table), plain.encode(table).length.numpy())
    zeros = CellTokenizer.fit(table, view=view, max_genes=25)
    trained = zeros.encode(table, generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(zeros.lengths(table), trained.length.numpy())
    assert (zeros.lengths(table) >= zeros.encode(table).length.numpy()).all()


# --- training-time randomness ----------------------------------------------------------------------------


def test_matched_zeros_are_genes_that_the_cell_does_not_express() -> None:
    table = make_table(200, rate=0.2)
    tokenizer = CellTokenizer.fit(table, max_genes=60)
    tokens = tokenizer.encode(table, generator=torch.Generator().manual_seed(5))
    assert tokens.address is not None and tokens.values is not None
    counts = table.counts.toarray()
    column = [int(name[1:]) for name in tokenizer.vocabulary]
    for row in range(len(table)):
        length = int(tokens.length[row])
        address, values = tokens.address[row, 1:length].numpy() - 1, tokens.values[row, 1:length, 0].numpy()
        assert (np.diff(address) > 0).all(), "the natural order, each gene once"
        np.testing.assert_array_equal(values, counts[row, column][address])
        expressed = int((counts[row, column] > 0).sum())
        assert (values > 0).sum() == min(expressed, 60 - min(len(column) - expressed, 30))
        assert (values == 0).sum() == min(
            (values > 0).sum(), len(column) - expressed, 60 - (values > 0).sum()
        )


def test_matched_zeros_equal_a_draw_for_all_cells_at_once() -> None:
    table = make_table(50)
    cells = Expressed.of(table.counts, np.arange(60), add_up=False)
    number = np.minimum(cells.length, 60 - cells.length)
    found = matched_zeros(cells, number, 60, np.random.default_rng(3))
    draws = np.random.default_rng(3).integers(1, 1 << 32, size=(50, 60), dtype=np.uint64)
    draws[dense(CellTable(counts=table.counts, genes=np.array([f"{i:02d}" for i in range(60)]))) > 0] = 0
    ends = np.cumsum(number)
    for row, (end, n) in enumerate(zip(ends, number)):
        best = np.argsort(-draws[row].astype(np.int64))[:n]
        assert sorted(found.genes[end - n : end].tolist()) == sorted(best.tolist())
    assert found.length.tolist() == number.tolist() and not found.counts.any()


def test_matched_zeros_are_uniform_and_seeded() -> None:
    counts = np.zeros((4000, 20), dtype=np.float32)
    counts[:, :3] = 1
    training = CellTable(counts=sp.csr_array(np.eye(20, dtype=np.float32)), genes=GENES[:20])
    tokenizer = CellTokenizer.fit(training, order="vocabulary")
    table = CellTable(counts=sp.csr_array(counts), genes=GENES[:20])
    tokens, again, other = (
        tokenizer.encode(table, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert_same(tokens, again)
    assert tokens.address is not None and other.address is not None
    assert not torch.equal(tokens.address, other.address)
    drawn = np.bincount(tokens.address[:, 1:7].flatten().numpy() - 1, minlength=20)[3:]
    expected = 4000 * 3 / 17
    assert ((drawn - expected) ** 2 / expected).sum() < 45  # chi-squared, 16 degrees: p < 1e-4


def test_no_generator_or_no_zeros_means_no_randomness() -> None:
    table = make_table()
    plain = CellTokenizer.fit(table, zeros="none", max_genes=10)
    assert_same(plain.encode(table, generator=torch.Generator().manual_seed(0)), plain.encode(table))
    zeros = CellTokenizer.fit(table, max_genes=10)
    assert_same(zeros.encode(table), plain.encode(table))


# --- fit sees training cells only ------------------------------------------------------------------------


def test_fit_knows_only_the_given_cells() -> None:
    table = make_table(100)
    counts = table.counts.toarray()
    counts[:50, 7] = 0
    counts[50:, 7] = 9
    table = CellTable(counts=sp.csr_array(counts), genes=GENES)
    tokenizer = CellTokenizer.fit(table.take(np.arange(50)))
    assert "G7" not in tokenizer.vocabulary
    assert tokenizer.statistics.depth[-1] == counts[:50].sum(1).max()


# --- templates and decoding ------------------------------------------------------------------------------


def test_template_holds_the_most_expressed_genes_and_training_depths() -> None:
    table = make_table()
    tokenizer = CellTokenizer.fit(table, max_genes=30, order="vocabulary")
    template = tokenizer.template(64, generator=torch.Generator().manual_seed(0), open_end=True)
    assert template.address is not None and template.exposure is not None and template.values is not None
    best = set(np.argsort(-tokenizer.statistics.mean)[:30])
    assert template.address[0, 0] == 0
    assert template.address[5, 1:].tolist() == sorted(1 + i for i in best)
    totals = table.total_counts()
    depth = np.round(template.exposure.double().numpy() * 1e4)
    assert totals.min() <= depth.min() and depth.max() <= totals.max() and len(set(depth)) > 20
    assert (template.values[:, 1:] == 0).all()
    assert tokenizer.decode(template).counts.nnz == 0


def test_decode_rounds_and_never_gives_negative_counts() -> None:
    table = make_table(3)
    tokenizer = CellTokenizer.fit(table)
    tokens = tokenizer.encode(table)
    assert tokens.values is not None
    tokens.values[:, 1:] += 0.4
    tokens.values[0, 1] = -5
    counts = tokenizer.decode(tokens).counts
    assert counts.data.min() >= 1 and (counts.data == np.round(counts.data)).all()


def test_ranks_come_back_roughly_as_cells() -> None:
    table = make_table(100)
    tokenizer = CellTokenizer.fit(table, view="ranks", max_genes=60)
    tokens = tokenizer.encode(table)
    back = tokenizer.decode(tokens)
    assert (back.counts.data == np.round(back.counts.data)).all()
    np.testing.assert_array_equal(dense(back) > 0, dense(table)[:, np.isin(np.sort(GENES), back.genes)] > 0)
    again = tokenizer.encode(back)
    assert tokens.ids is not None and again.ids is not None
    np.testing.assert_array_equal(np.sort(again.ids[0].numpy()), np.sort(tokens.ids[0].numpy()))
    doubled = tokens.take([0])
    assert doubled.ids is not None
    doubled.ids[0, 1] = doubled.ids[0, 0]
    assert tokenizer.decode(doubled).counts.nnz == int(tokens.length[0]) - 1
    template = tokenizer.template(9, generator=torch.Generator().manual_seed(0))
    assert template.positions is not None and template.address is not None
    assert torch.equal(template.positions[..., 0].long(), template.address)


def test_describe_shows_genes_and_counts(view: str) -> None:
    table = make_table(20)
    text = CellTokenizer.fit(table, view=view).describe(table[3])
    assert "cell-3" in text and "G" in text and "match 100%" in text
    top = GENES[table.counts.toarray()[3].argmax()]
    if view == "counts":
        assert "<depth>" in text and re.search(rf"{top} +{int(table.counts.toarray()[3].max())} ", text)


# --- genes -----------------------------------------------------------------------------------------------


def test_versions_leave_ensembl_ids_only() -> None:
    names = [
        " ENSG00000141510.17",
        "ENSMUSG00000059552.14 ",
        "RP11-34P13.7",
        "AC012345.1",
        "ENSG00000182378.14_PAR_Y",
    ]
    wanted = ["ENSG00000141510", "ENSMUSG00000059552", "RP11-34P13.7", "AC012345.1", "ENSG00000182378_PAR_Y"]
    assert clean_genes(names) == wanted


def test_case_matches_only_where_unique() -> None:
    match = match_genes(["cd3d", "Cd8a", "CD8A", "lyz", "LYz"], ["CD3D", "CD8A", "LYZ"])
    assert match.columns.tolist() == [0, -1, 1, -1, -1]
    assert match.by_case == 1 and match.missing == ("LYZ",)
    with pytest.raises(ConsilienceError):
        match_genes(["ab"], ["AB", "Ab"])


def test_duplicate_columns_are_added_up() -> None:
    table = CellTable(
        counts=sp.csr_array(np.array([[1.0, 2, 4], [0, 3, 0]])), genes=np.array(["A", "B", " A"])
    )
    tokenizer = CellTokenizer.fit(table)
    assert tokenizer.match(table).duplicates == 1 and "added up" in tokenizer.match(table).report()
    back = tokenizer.decode(tokenizer.encode(table))
    np.testing.assert_array_equal(dense(back), [[5, 2], [0, 3]])
    np.testing.assert_array_equal(table.counts.toarray(), [[1, 2, 4], [0, 3, 0]])


def test_other_gene_names_are_an_error_that_shows_both() -> None:
    table = make_table(20)
    tokenizer = CellTokenizer.fit(table)
    foreign = CellTable(counts=table.counts, genes=np.array([f"ENSG000001415{i:02d}" for i in range(60)]))
    with pytest.raises(ConsilienceError, match=r"0 of the 60 genes .*'ENSG00000141500'.*'G\d+'"):
        tokenizer.encode(foreign)
    few = CellTable(counts=table.counts, genes=np.array([*GENES[:5], *(f"X{i}" for i in range(55))]))
    with pytest.raises(ConsilienceError, match=r"5 of the 60 genes .*8\.\d%, needed 10%"):
        tokenizer.encode(few)
    panel = CellTable(counts=table.counts[:, :5], genes=GENES[:5])
    assert tokenizer.match(panel).fraction == 1


# --- bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.5, "1.5"), (-2.0, "-2"), (np.nan, "nan"), (np.inf, "inf")],
    ids=["half", "minus", "nan", "inf"],
)
def test_numbers_that_are_not_counts(value: float, shown: str, view: str) -> None:
    good = make_table(200)
    tokenizer = CellTokenizer.fit(good, view=view)
    counts = good.counts.toarray()
    counts[150, 4] = value
    bad = CellTable(counts=sp.csr_array(counts), genes=GENES, names=good.names)
    message = rf"cell cell-150 has {shown} for gene G4, which is not a count; repair or drop"
    with pytest.raises(UnreadableRecordError, match=message) as caught:
        tokenizer.encode(bad)
    assert caught.value.index == 150
    (failure,) = tokenizer.check(bad)
    assert failure.index == 150 and re.search(message, failure.reason)
    without = good.take(np.delete(np.arange(200), 150))
    fitted = CellTokenizer.fit(bad, view=view)
    assert fitted.state() == CellTokenizer.fit(without, view=view).state(), "bad cells are passed over"
    counts[:100, 4] = value
    many = CellTable(counts=sp.csr_array(counts), genes=GENES, names=good.names)
    with pytest.raises(
        ConsilienceError, match=r"101 of 200 training cells .*raw counts are needed.*cell cell-0"
    ):
        CellTokenizer.fit(many, view=view)


def test_cells_without_counts_or_known_genes(view: str) -> None:
    training = make_table(100)
    tokenizer = CellTokenizer.fit(training, view=view)
    counts = np.hstack([make_table(200).counts.toarray(), np.ones((200, 1), np.float32)])
    counts[140] = 0
    counts[7, :60] = 0
    table = CellTable(counts=sp.csr_array(counts), genes=np.append(GENES, "unknown"))
    failures = tokenizer.check(table)
    assert [failure.index for failure in failures] == [7, 140]
    assert "no gene of the model's vocabulary" in failures[0].reason and "has no counts" in failures[1].reason
    with pytest.raises(UnreadableRecordError, match="no gene of the model's vocabulary") as caught:
        tokenizer.encode(table)
    assert caught.value.index == 7
    with pytest.raises(UnreadableRecordError, match="record 12: the cell has no counts; drop it") as caught:
        tokenizer.encode(table.take(np.arange(128, 200)))
    assert caught.value.index == 12
    counts[:199] = 0
    assert CellTokenizer.fit(CellTable(counts=sp.csr_array(counts), genes=table.genes), view=view)
    empty = CellTable(counts=sp.csr_array(counts * 0), genes=table.genes)
    with pytest.raises(
        ConsilienceError, match=r"200 of 200 training cells cannot be read; first: .* no counts"
    ):
        CellTokenizer.fit(empty, view=view)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": 5}, "unknown tokenizer option 'bins'; known: view, max_genes"),
        ({"view": "image"}, "view='image' is not one of counts, ranks"),
        ({"max_genes": 1}, "max_genes=1 must be at least 2"),
        ({"zeros": "all"}, "zeros='all'"),
        ({"min_matched": 2.0}, "min_matched=2.0 must lie between 0 and 1"),
        ({"max_vocabulary": 0}, "max_vocabulary=0"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConsilienceError, match=re.escape(message)):
        CellTokenizer.fit(make_table(5), **options)


def test_empty_tables(view: str) -> None:
    table = make_table(5)
    with pytest.raises(ConsilienceError, match="no cell to fit"):
        CellTokenizer.fit(table.take([]), view=view)
    tokenizer = CellTokenizer.fit(table, view=view)
    with pytest.raises(ConsilienceError, match="no cell to encode"):
        tokenizer.encode(table.take([]))
    assert tokenizer.check(table.take([])) == [] and len(tokenizer.lengths(table.take([]))) == 0


# --- tables on disk --------------------------------------------------------------------------------------


@pytest.fixture(params=["sparse", "dense"])
def stored(request: pytest.FixtureRequest, tmp_path) -> tuple[CellTable, CellTable]:
    """(in memory, on disk): the same cells."""
    anndata = pytest.importorskip("anndata")
    table = make_table()
    matrix = sp.csr_matrix(table.counts) if request.param == "sparse" else table.counts.toarray()
    anndata.AnnData(X=matrix).write_h5ad(tmp_path / "x.h5ad")
    return table, CellTable(counts=StoredCounts(tmp_path / "x.h5ad", "X"), genes=GENES, names=table.names)


def test_taking_from_stored_counts_reads_nothing(
    stored: tuple[CellTable, CellTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    table, disk = stored
    reads: list[int] = []
    read = StoredCounts.read
    monkeypatch.setattr(
        StoredCounts, "read", lambda self, rows: (reads.append(len(rows)), read(self, rows))[1]
    )
    rows = np.array([250, 3, 3, 4, 299, 0])
    taken = disk.take(rows)
    assert not taken.in_memory and reads == []
    np.testing.assert_array_equal(taken.load().counts.toarray(), table.counts.toarray()[rows])
    np.testing.assert_array_equal(
        taken.take([4, 0]).load().counts.toarray(), table.counts.toarray()[[299, 250]]
    )
    assert reads == [6, 2], "and loading reads these rows in one go"
    assert len(taken.take([]).load()) == 0 and taken.widest() >= table.take(rows).widest()


def test_stored_cells_give_the_same_tokens(stored: tuple[CellTable, CellTable], view: str) -> None:
    table, disk = stored
    tokenizer = CellTokenizer.fit(table, view=view)
    from_disk = CellTokenizer.fit(disk, view=view)
    assert from_disk.state() == tokenizer.state()
    assert_same(from_disk.encode(disk), tokenizer.encode(table))
    assert_same(tokenizer.encode(pickle.loads(pickle.dumps(disk))), tokenizer.encode(table))
    np.testing.assert_array_equal(tokenizer.lengths(disk), tokenizer.lengths(table))


def test_table_refuses_what_does_not_fit() -> None:
    table = make_table(4)
    with pytest.raises(ConsilienceError, match="59 gene names for 60 columns"):
        CellTable(counts=table.counts, genes=GENES[:59])
    with pytest.raises(ConsilienceError, match="`depth` has 3 entries for 4 cells"):
        CellTable(counts=table.counts, genes=GENES, depth=np.ones(3))
    with pytest.raises(IndexError):
        table[4]
    assert [cell.names[0] for cell in table] == [f"cell-{i}" for i in range(4)]
