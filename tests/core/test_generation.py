"""Options of generation, and completion of records from what is kept, against the exact answers of a chain."""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from consilience.core.batch import TokenBatch
from consilience.core.errors import ConsilienceError
from consilience.core.model import FoundationModel
from consilience.core.objectives import (
    AddressOnly,
    AnyOrder,
    Block,
    Denoising,
    Masked,
    MaskedDiffusion,
    NextToken,
    TwoPhase,
)
from consilience.core.oracle import Oracle
from consilience.core.sampling import Sampling
from consilience.core.synthetic import GaussianAR1, MarkovChain
from consilience.core.synthetic_tokenizer import SyntheticTokenizer

CHAIN = MarkovChain(length=4)
SYMBOLS = [NextToken(), AnyOrder(), Masked(), MaskedDiffusion(), TwoPhase(), Block(size=2), AddressOnly()]
CONFIDENT = [Masked(), MaskedDiffusion(), TwoPhase(), Block(size=4), Block(size=2)]
BOTH_WAYS = [AnyOrder(), MaskedDiffusion(), Masked(), Block(size=2, order="random"), Block(size=None)]
SHARES = torch.tensor([0.5, 0.3, 0.15, 0.05])


@dataclass
class Fixed:
    """The same four probabilities for every token, whatever is visible."""

    objective: object
    chain = MarkovChain(length=4, transition=((0.25,) * 4,) * 4)

    @property
    def spec(self):
        return self.chain.spec

    @property
    def likelihoods(self):
        return self.objective.likelihoods(self.spec)

    def __call__(self, view, *, cache=None):
        return {"ids": SHARES.log().expand(*view.hidden.shape, 4).clone()}


def blank(source, n: int) -> TokenBatch:
    return replace(
        source.tokens(n, torch.Generator().manual_seed(0)), ids=torch.zeros(n, 4, dtype=torch.long)
    )


def sampled(objective, predict, n: int, template=None, hidden=None, **options) -> TokenBatch:
    template = blank(CHAIN, n) if template is None else template
    hidden = template.real if hidden is None else hidden
    generator = torch.Generator().manual_seed(1)
    return objective.sample(predict, template, hidden, generator, Sampling(cached=False, **options))


def check_distribution(ids: torch.Tensor, nll) -> None:
    """The frequencies of all sequences against exp(-nll), normalised over those that may occur. ids: (n, N)."""
    every = torch.tensor(list(product(range(3), repeat=ids.shape[1])))
    probability = torch.exp(-nll(every)).numpy()
    probability = probability / probability.sum()
    code = (ids * 3 ** torch.arange(ids.shape[1] - 1, -1, -1)).sum(1)
    counts = np.bincount(code.numpy(), minlength=len(every))
    likely = probability * len(ids) >= 5  # rare ones together
    seen = np.append(counts[likely], counts[~likely].sum())
    expected = np.append(probability[likely], probability[~likely].sum()) * len(ids)
    keep = expected > 0
    assert not seen[~keep].any()
    assert chisquare(seen[keep], expected[keep]).pvalue > 1e-3


def chain_nll(ids: torch.Tensor) -> torch.Tensor:
    return CHAIN.nll(CHAIN.place(TokenBatch(length=torch.full((len(ids),), 4), ids=ids)))


# Which symbols may be drawn.


@pytest.mark.parametrize("objective", SYMBOLS, ids=repr)
@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.8}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.81}, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        ({"top_p": 0.6, "temperature": 0.5}, [1, 0, 0, 0]),  # 0.25 of 0.365 at this temperature
        ({"top_k": 3, "top_p": 0.5}, [1, 0, 0, 0]),
        ({"top_k": 9, "top_p": 1.0}, SHARES.tolist()),
        ({"banned": (0, 3)}, [0, 2 / 3, 1 / 3, 0]),
    ],
    ids=str,
)
def test_symbols_come_from_the_likeliest_alone(objective, options, kept):
    ids = sampled(objective, Fixed(objective), 2500, **options).ids
    share = torch.bincount(ids.flatten(), minlength=4) / ids.numel()
    assert torch.allclose(share, torch.tensor(kept).float(), atol=0.02)
    assert not share[torch.tensor(kept) == 0].any()


def test_equal_symbols_are_cut_to_k():
    assert torch.isfinite(Sampling(top_k=2).permitted(torch.zeros(5, 4))).sum(1).tolist() == [2] * 5
    assert torch.equal(
        Sampling(top_p=0.5).permitted(torch.tensor([[0.0, 50.0]])).isfinite(), torch.tensor([[False, True]])
    )


def test_banned_symbols_are_not_the_mode_either():
    objective = MaskedDiffusion()
    for options in ({"temperature": 0.0}, {"mean": True}):
        ids = sampled(objective, Fixed(objective), 3, banned=(0,), **options).ids
        assert torch.equal(ids, torch.ones_like(ids))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k must be at least 1, not 0"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\], not 0.0"),
        ({"top_p": 1.5}, r"top_p must lie in \(0, 1\], not 1.5"),
        ({"unmask_order": "best"}, "unknown unmask_order 'best'; known: random, confidence"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConsilienceError, match=message):
        Sampling(**options)


# In which order tokens are revealed.


@pytest.mark.parametrize("objective", [*SYMBOLS[:6], *CONFIDENT], ids=repr)
def test_one_token_a_step_is_exact(objective):
    """By confidence too, where the conditionals agree with one another: the order depends on visible tokens alone."""
    options = {"unmask_order": "confidence"} if objective in CONFIDENT else {}
    check_distribution(sampled(objective, Oracle(CHAIN, objective), 20_000, **options).ids, chain_nll)


@dataclass
class Watching(Fixed):
    """Is surer of later tokens than of earlier ones, and notes what is hidden."""

    def __post_init__(self):
        self.hidden = []

    def __call__(self, view, *, cache=None):
        self.hidden.append(view.hidden[0].tolist())
        sure = torch.arange(4.0)[:, None] * torch.tensor([1.0, 0, 0, 0])
        return {"ids": sure.expand(len(view.hidden), 4, 4).clone()}


def test_the_surest_token_is_revealed_first():
    objective = MaskedDiffusion()
    watching = Watching(objective)
    template = blank(CHAIN, 2)
    sampled(objective, watching, 2, template, unmask_order="confidence")
    assert [row.index(False) if False in row else 4 for row in watching.hidden] == [4, 3, 2, 1]
    watching.hidden.clear()
    template = replace(template, length=torch.tensor([4, 2]))
    filled = sampled(objective, watching, 2, template, unmask_order="confidence", steps=2, temperature=0.0)
    assert watching.hidden == [[True] * 4, [True, True, False, False]]
    assert filled.ids[1, 2:].tolist() == [0, 0]


@pytest.mark.parametrize("objective", [NextToken(), AnyOrder(), AddressOnly(), Denoising()], ids=repr)
def test_other_samplers_have_an_order_of_their_own(objective):
    source = GaussianAR1(length=4) if objective == Denoising() else CHAIN
    model = FoundationModel(_core(), {source.name: SyntheticTokenizer(source)}, objective)
    with pytest.raises(ConsilienceError, match=f"{objective.name} has an order of its own"):
        model.generate(1, unmask_order="confidence")


@pytest.mark.parametrize("objective", [NextToken(), AnyOrder(), AddressOnly(), Masked()], ids=str)
def test_steps_are_refused_where_they_cannot_be_chosen(objective):
    model = FoundationModel(_core(), {CHAIN.name: SyntheticTokenizer(CHAIN)}, objective)
    assert objective.has_steps == isinstance(objective, Masked)
    if objective.has_steps:
        model.generate(1, steps=2)
        return
    with pytest.raises(
        ConsilienceError, match=f"{objective.name} cannot choose its steps: steps=2 is for masked"
    ):
        model.generate(1, steps=2)


def test_numbers_have_no_confidence():
    source = GaussianAR1(length=4)
    model = FoundationModel(_core(), {source.name: SyntheticTokenizer(source)}, Masked())
    with pytest.raises(
        ConsilienceError, match="confidence is for symbols, and gaussian-ar1 tokens are numbers"
    ):
        model.generate(1, unmask_order="confidence")


# Completion from what is kept.


@pytest.mark.parametrize("objective", [*BOTH_WAYS, *CONFIDENT[1:2]], ids=repr)
@pytest.mark.parametrize("kept", [{0: 1, 3: 2}, {1: 0, 2: 2}, {3: 1}], ids=str)
def test_what_is_filled_has_the_exact_conditional(objective, kept):
    template = blank(CHAIN, 10_000)
    hidden = torch.ones_like(template.real)
    for place, symbol in kept.items():
        template.ids[:, place] = symbol
        hidden[:, place] = False
    assert objective.unread(template, hidden) is None
    filled = sampled(objective, Oracle(CHAIN, objective), 0, template, hidden)
    assert torch.equal(filled.ids[~hidden], template.ids[~hidden])

    def conditional(every: torch.Tensor) -> torch.Tensor:
        fits = torch.stack([every[:, place] == symbol for place, symbol in kept.items()]).all(0)
        return torch.where(fits, chain_nll(every), torch.inf)

    check_distribution(filled.ids, conditional)


def mask(*rows: int) -> torch.Tensor:
    return torch.tensor([[place in rows for place in range(4)]])


@pytest.mark.parametrize(
    ("objective", "hidden", "token"),
    [
        (NextToken(), mask(1, 2), 3),
        (NextToken(), mask(2, 3), None),
        (NextToken(order="reversed"), mask(2, 3), 0),
        (NextToken(order="reversed"), mask(0, 1), None),
        (NextToken(order="random"), mask(1, 2), None),
        (AnyOrder(), mask(0), None),
        (Block(size=2), mask(1, 2), 3),
        (Block(size=3), mask(1), 3),
        (Block(size=2), mask(2), None),
        (Block(size=2, order="random"), mask(1), None),
        (Block(size=None), mask(1), None),
        (Masked(), mask(1), None),
        (NextToken(), mask(), None),
    ],
    ids=str,
)
def test_objectives_say_what_they_would_not_look_at(objective, hidden, token):
    tokens = blank(CHAIN, 1)
    if objective == Block(size=2) and hidden[0, 1]:
        hidden, token = mask(1), 2  # the neighbour in the block is looked at, the next block is not
    found = objective.unread(tokens, hidden)
    if token is None:
        assert found is None
    else:
        assert f"looks back only, and token {token} is to be kept" in found


def test_address_only_looks_at_nothing():
    assert "draws every token alone" in AddressOnly().unread(blank(CHAIN, 1), mask(1))
    assert AddressOnly().unread(blank(CHAIN, 1), mask(0, 1, 2, 3)) is None


def _core():
    from consilience.core.transformer import CoreConfig

    return CoreConfig(width=16, depth=1, heads=2)


def test_complete_keeps_what_is_not_hidden(tools):
    tokenizer = SyntheticTokenizer(CHAIN)
    records = [np.array([0, 1, 2, 0]), np.array([2, 1]), np.array([1, 1, 1])]
    model = FoundationModel(tools.tiny, {CHAIN.name: tokenizer}, AnyOrder())
    tools.awaken(model)
    hidden = torch.tensor([[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 1, 0]]).bool()
    filled = [model.complete(records, hidden, seed=seed, batch_size=2) for seed in range(20)]
    for made in filled:
        assert [len(record) for record in made] == [4, 2, 3]
        for row, record in enumerate(made):
            open_places = hidden[row, : len(record)].numpy()
            assert np.array_equal(record[~open_places], records[row][~open_places])
    assert len({tuple(made[0]) for made in filled}) > 1
    same = model.complete(records, lambda tokens: tokens.ids == 1, seed=3)
    assert same[0][0] == 0 and same[0][2] == 2 and same[1][0] == 2
    with pytest.raises(ConsilienceError, match=r"hidden must be bool of shape \(3, 4\)"):
        model.complete(records, torch.ones(2, 4).bool())
    with pytest.raises(ConsilienceError, match=r"not float32 of \(3, 4\)"):
        model.complete(records, torch.ones(3, 4))


def test_complete_refuses_what_it_cannot_look_at(tools):
    model = FoundationModel(tools.tiny, {CHAIN.name: SyntheticTokenizer(CHAIN)}, NextToken())
    with pytest.raises(ConsilienceError, match="next-token in natural order looks back only, and token 2"):
        model.complete([np.array([0, 1, 2, 0])], mask(1))
    assert model.complete([np.array([0, 1, 2, 0])], mask(2, 3))[0][:2].tolist() == [0, 1]


def test_ends_of_records_are_kept_unless_the_model_chooses_them(tools):
    """Symbol 2 ends a sample: a masked model never draws it inside, a next-token model may."""
    tokenizer = SyntheticTokenizer(CHAIN, end=2)
    records = [np.array([0, 1, 0, 2])] * 200
    masked, causal = (
        FoundationModel(tools.tiny, {CHAIN.name: tokenizer}, objective)
        for objective in (Masked(), NextToken())
    )
    hidden = torch.ones(200, 4).bool()
    kept = masked.complete(records, hidden)
    assert all(len(record) == 4 and record[3] == 2 and 2 not in record[:3] for record in kept)
    hidden[:, 0] = False
    made = causal.complete(records, hidden)
    assert {len(record) for record in made} == {2, 3, 4} and all(record[0] == 0 for record in made)


def test_sciences_without_patterns_say_so(tools):
    model = FoundationModel(tools.tiny, {CHAIN.name: SyntheticTokenizer(CHAIN)}, Masked())
    with pytest.raises(ConsilienceError, match=r"synthetic records are not written as patterns: .*complete"):
        model.generate(2, pattern="a*b")


def test_values_are_completed_too(tools):
    """Counts, values with weights, mixed content: what is kept is kept to the bit, through `complete_tokens`."""
    from consilience.core.generation import complete_tokens

    for kind in ("values", "weighted", "counts", "mixed"):
        spec, tokens = tools.spec_of(kind), tools.batch_of(kind)
        model = tools.model_of(spec, MaskedDiffusion())
        hidden = torch.rand(tokens.real.shape, generator=tools.seeded(1)) < 0.5
        done = complete_tokens(model, tokens, hidden, domain=spec.name, seed=0, batch_size=2)
        open_rows = hidden & tokens.real & ~tokens.is_given
        assert torch.equal(done.values[~open_rows], tokens.values[~open_rows])
        assert not torch.equal(done.values[open_rows], tokens.values[open_rows])
