"""No clean content reaches a prediction of its own or an earlier block, to the bit; a planted leak does.

Clean content is changed while what the core may see of it stays the same, the view is drawn again with the same
seed, and the predictions are compared with `torch.equal`. A control shows that visible content does move them.
"""

from dataclasses import dataclass, replace
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from consilience.core.attention import Layout, Pattern
from consilience.core.batch import TokenBatch
from consilience.core.conditions import Conditions
from consilience.core.objectives import (
    AddressOnly,
    AnyOrder,
    Block,
    Denoising,
    Masked,
    MaskedDiffusion,
    NextToken,
    Objective,
    TwoPhase,
)
from consilience.core.objectives.denoising import noisy_view
from consilience.core.objectives.orders import permutation
from consilience.core.transformer import CoreConfig, CoreInput, Transformer
from consilience.core.view import Targets, View

KINDS = ["ids", "values", "weighted", "counts", "mixed", "cloud"]
CONTENT = ("ids", "values", "weight")
SEED = 3


def swap(
    tokens: TokenBatch, other: TokenBatch, where: Tensor, names: tuple[str, ...] = CONTENT
) -> TokenBatch:
    """The tokens with the content of `other` in the rows `where` (B, N)."""
    changed = {}
    for name in names:
        old = getattr(tokens, name)
        if old is not None:
            chosen = where if old.dim() == 2 else where[..., None]
            changed[name] = torch.where(chosen, getattr(other, name), old)
    return replace(tokens, **changed)


class Probe:
    """One objective over one kind of content: draws views of changed tokens and predicts from them."""

    def __init__(self, objective: Objective, kind: str, tools, told: Conditions | None = None) -> None:
        self.objective, self.spec = objective, tools.spec_of(kind)
        self.tokens = tools.batch_of(kind)
        if told is not None:
            rows = torch.randn(self.tokens.size, len(told.names), generator=tools.seeded(9))
            self.tokens = replace(self.tokens, conditions=rows)
        self.other = tools.content_of(kind, self.tokens, 77)
        self.seeded = tools.seeded
        self.model = tools.model_of(self.spec, objective, conditions=told)
        self.view, self.targets = self.draw(self.tokens)
        self.answer = self.predict(self.view)

    def draw(self, tokens: TokenBatch) -> tuple[View, Targets]:
        return self.objective.view(tokens, self.spec, self.seeded(SEED))

    @torch.no_grad()
    def predict(self, view: View) -> Tensor:
        """(B, M, all parameters), zeros at padding."""
        found = self.model.predictor()(view)
        return torch.cat(list(found.values()), dim=-1) * view.tokens.real[..., None]

    def moved(self, view: View) -> Tensor:
        """(B, M) rows whose prediction is not the same to the bit."""
        return (self.predict(view) != self.answer).any(-1)


def next_token_leaks(probe: Probe) -> bool:
    """Content of token i of the order moves a prediction of token i or of one before it."""
    order = probe.objective.permutation(probe.tokens, probe.seeded(SEED))
    row = torch.arange(probe.tokens.width)
    reached = 0
    for i in range(probe.tokens.width):
        where = torch.zeros_like(probe.tokens.real).scatter(1, order[:, i : i + 1], True) & probe.tokens.real
        moved = probe.moved(probe.draw(swap(probe.tokens, probe.other, where))[0])
        if moved[:, row <= i].any():
            return True
        reached += int(moved[:, row > i].sum())
    assert reached > 20, "control: later predictions must move"
    return False


def block_objective_leaks(probe: Probe) -> bool:
    """Clean content of a block, its corrupted content left as it is, moves a query of it or of one before it."""
    objective = probe.objective
    order = permutation(probe.tokens, objective.order, probe.seeded(SEED))
    number = objective.number(probe.tokens.permute(order))
    numbers, query = probe.view.pattern.block, probe.view.pattern.query
    reached = 0
    for block in range(1, int(number.max()) + 1):
        own = torch.zeros_like(probe.tokens.real).scatter(1, order, number == block) & probe.tokens.real
        view, targets = probe.draw(swap(probe.tokens, probe.other, own))
        assert torch.equal(targets.scored, probe.targets.scored), "what is hidden must not depend on content"
        # Query rows as they were: their own content counts only where it is corrupted.
        shown = {
            name: torch.where(query if old.dim() == 2 else query[..., None], old, getattr(view.tokens, name))
            for name in CONTENT
            if (old := getattr(probe.view.tokens, name)) is not None
        }
        moved = probe.moved(replace(view, tokens=replace(view.tokens, **shown))) & query
        if moved[numbers <= block].any():
            return True
        reached += int(moved[numbers > block].sum())
        # And of what is hidden, nothing stands in the query rows at all.
        hidden = view.hidden & query
        for name in shown:
            if getattr(view.tokens, name)[hidden].any():
                return True
    assert reached > 5, "control: later queries must move"
    return False


def masked_leaks(probe: Probe) -> bool:
    """Content of hidden tokens, one by one and all at once, moves any prediction."""
    hidden = probe.targets.scored
    assert hidden.any() and (probe.tokens.real & ~hidden).any()
    for where in (
        hidden,
        *(hidden & (torch.arange(probe.tokens.width) == i) for i in range(probe.tokens.width)),
    ):
        view, targets = probe.draw(swap(probe.tokens, probe.other, where))
        assert torch.equal(targets.scored, hidden), "what is hidden must not depend on the content"
        if probe.moved(view).any():
            return True
    visible = probe.tokens.real & ~hidden
    control = probe.moved(probe.draw(swap(probe.tokens, probe.other, visible))[0])
    assert (control & hidden).any(), "control: visible content must move predictions"
    return False


def denoising_leaks(probe: Probe) -> bool:
    """Clean values move a prediction while the corrupted ones stay: the noise makes up for the change."""
    free = probe.targets.scored
    clean = probe.spec.standardise(probe.tokens.values)
    noise = clean - probe.targets.velocity
    time = probe.view.time[probe.view.time_index][..., None]
    changed = swap(probe.tokens, probe.other, free, ("values",))
    delta = probe.spec.standardise(changed.values) - clean
    made_up = noise - torch.where(free[..., None], time / (1 - time), 0.0) * delta
    real_randn = torch.randn

    def randn(*size: object, **options: object) -> Tensor:
        real_randn(*size, **options)  # the generator moves on as ever
        return made_up

    with patch("torch.randn", randn):
        view, targets = probe.draw(changed)
    assert not torch.allclose(targets.velocity, probe.targets.velocity, atol=0.1), "the clean values changed"
    shown = view.tokens.values
    if shown.shape != clean.shape or not torch.allclose(shown, probe.view.tokens.values, atol=1e-4):
        return True
    # Rounding aside the corrupted values are the same: now to the bit.
    view = replace(view, tokens=replace(view.tokens, values=probe.view.tokens.values))
    if probe.moved(view).any():
        return True
    if probe.spec.vocabulary:
        lost = free & (probe.view.tokens.ids == probe.spec.vocabulary)
        assert lost.any()
        if probe.moved(probe.draw(swap(probe.tokens, probe.other, lost, ("ids",)))[0]).any():
            return True
    assert probe.moved(probe.draw(changed)[0]).any(), "control: other corrupted values must move predictions"
    return False


def leaks(objective: Objective, kind: str, tools, told: Conditions | None = None) -> bool:
    probe = Probe(objective, kind, tools, told)
    if isinstance(objective, Block):
        return block_objective_leaks(probe)
    if isinstance(objective, NextToken):
        return next_token_leaks(probe)
    return denoising_leaks(probe) if isinstance(objective, Denoising) else masked_leaks(probe)


HONEST = [
    NextToken(),
    NextToken(order="reversed"),
    NextToken(order="random"),
    Masked(),
    Masked(rate=0.5),
    MaskedDiffusion(),
    Denoising(),
    AnyOrder(),
    NextToken(order="centre-out"),
    TwoPhase(),
    Block(size=1),
    Block(size=2, order="random"),
    Block(size=3, order="centre-out"),
    Block(size=2, noise="gaussian"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", HONEST, ids=repr)
def test_clean_content_does_not_leak(objective, kind, tools):
    if needs_values(objective) and kind == "ids":
        pytest.skip("noise needs values")
    assert not leaks(objective, kind, tools)


@pytest.mark.parametrize("kind", KINDS)
def test_address_only_sees_no_content_at_all(kind, tools):
    """Nothing but given tokens moves a prediction, in training and in what is embedded."""
    probe = Probe(AddressOnly(), kind, tools)
    free = probe.targets.scored
    changed = swap(probe.tokens, probe.other, free)
    assert not probe.moved(probe.draw(changed)[0]).any()
    assert not probe.moved(probe.objective.observe(changed, probe.spec)).any()
    given = probe.tokens.is_given
    assert probe.moved(probe.draw(swap(probe.tokens, probe.other, given))[0])[free].any(), "control"


TOLD = Conditions.fit({name: torch.arange(3.0).numpy() for name in "ab"})


@pytest.mark.parametrize("objective", HONEST, ids=repr)
def test_clean_content_does_not_leak_beside_conditions(objective, tools):
    kind = "values" if needs_values(objective) else "ids"
    assert not leaks(objective, kind, tools, TOLD)
    plain, told = Probe(objective, kind, tools), Probe(objective, kind, tools, TOLD)
    assert torch.equal(plain.targets.scored, told.targets.scored), "conditions are never scored"
    scored = told.targets.scored
    assert (plain.answer != told.answer).any(-1)[scored].all(), "control: they are seen"


def needs_values(objective: Objective) -> bool:
    return isinstance(objective, Denoising) or getattr(objective, "noise", "") == "gaussian"


@dataclass(frozen=True, kw_only=True)
class BareDenoising(Denoising):
    """Shows the clean values where it should show the corrupted ones."""

    def view(self, tokens, spec, generator):
        view, targets = super().view(tokens, spec, generator)
        clean = spec.standardise(tokens.values)
        return noisy_view(tokens, clean, view.time[:-1], torch.zeros_like(tokens.real), spec), targets


@dataclass(frozen=True, kw_only=True)
class PlacedMasked(Masked):
    """Hides the content of tokens, yet lets their places carry it."""

    def view(self, tokens, spec, generator):
        view, targets = super().view(tokens, spec, generator)
        shown = view.tokens.positions if tokens.values is None else spec.standardise(tokens.values)[..., :1]
        return replace(view, tokens=replace(view.tokens, positions=shown)), targets


@pytest.mark.parametrize("kind", ["ids", "values", "weighted", "counts", "mixed"])
@pytest.mark.parametrize(
    "leak", ["next-token", "next-token-unshifted", "masked", "masked-diffusion", "block"]
)
def test_a_planted_leak_is_found(leak, kind, tools):
    assert leaks(tools.planted(leak), kind, tools)


@pytest.mark.parametrize("kind", ["values", "weighted", "counts", "mixed"])
def test_a_planted_leak_of_denoising_is_found(kind, tools):
    assert leaks(tools.planted("denoising"), kind, tools)
    assert leaks(BareDenoising(), kind, tools)
    assert leaks(tools.planted("block-gaussian"), kind, tools)
    assert leaks(PlacedMasked(rate=0.5), kind, tools)


def test_hidden_content_is_blank_in_the_view(tools):
    """Beyond the predictions: nothing downstream could read hidden content, not even by mistake."""
    for kind in KINDS:
        for objective in (Masked(rate=0.5), MaskedDiffusion()):
            probe = Probe(objective, kind, tools)
            for name in CONTENT:
                shown = getattr(probe.view.tokens, name)
                if shown is not None:
                    assert not shown[probe.view.hidden].any()


# The block pattern with a stream of queries (block diffusion, block flow), on the transformer itself.


def block_leaks(kind: type[Pattern], size: int, tools) -> bool:
    generator, n = tools.seeded(), 6
    real = torch.arange(n) < torch.tensor([6, 4, 5, 6])[:, None]
    block = torch.rand(4, n, generator=generator).argsort(1) // size
    query = torch.zeros(4, 2 * n, dtype=torch.bool)
    query[:, n:] = True
    pattern = kind(kind="block", block=torch.cat([block, block], dim=1), query=query)
    both = torch.cat([real, real], dim=1)
    core = Transformer(CoreConfig(width=16, depth=2, heads=2)).eval()
    tools.awaken(core)
    clean, corrupted, other = (torch.randn(4, n, 16, generator=generator) for _ in range(3))

    @torch.no_grad()
    def answer(context: Tensor, queries: Tensor) -> Tensor:
        rows = torch.cat([context, queries], dim=1)
        return core(CoreInput(rows=rows, layout=Layout(both, pattern), time=torch.ones(1))).final

    before = answer(clean, corrupted)
    reached = 0
    for b in range(int(block.max()) + 1):
        own = ((block == b) & real)[..., None]
        moved = (answer(torch.where(own, other, clean), corrupted) != before).any(-1)
        if moved[:, n:][block <= b].any() or moved[:, :n][block < b].any():
            return True
        reached += int(moved[:, n:][block > b].sum())
        # Corrupted rows are seen within their own block alone.
        moved = (answer(clean, torch.where(own, other, corrupted)) != before).any(-1)
        if moved[:, :n].any() or moved[:, n:][block != b].any():
            return True
        assert moved[:, n:][(block == b) & real].all(), "control: queries of one block see one another"
    assert reached > 0 or size >= n, "control: later queries see the clean context"
    return False


@pytest.mark.parametrize("size", [1, 2, 6])
def test_block_pattern_does_not_leak(size, tools):
    assert not block_leaks(Pattern, size, tools)


@pytest.mark.parametrize("size", [1, 2, 6])
def test_a_leaky_block_pattern_is_found(size, tools):
    assert block_leaks(tools.leaky_pattern, size, tools)
