"""What every objective promises of its views, weights and kinds of loss."""

from dataclasses import replace

import pytest
import torch

from consilience.core.errors import ConsilienceError
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
from consilience.core.objectives.base import stratified
from consilience.core.objectives.orders import ORDERS, permutation
from consilience.core.synthetic import GaussianAR1
from consilience.core.view import Loss

KINDS = ["ids", "values", "weighted", "counts", "mixed", "cloud"]
OBJECTIVES = [
    NextToken(),
    NextToken(order="reversed"),
    NextToken(order="random"),
    Masked(),
    Masked(rate=0.3),
    MaskedDiffusion(),
    Denoising(),
    AnyOrder(),
    NextToken(order="centre-out"),
    AddressOnly(),
    TwoPhase(),
    Block(size=2),
    Block(size=2, noise="gaussian", order="reversed"),
]
NOISY = (OBJECTIVES[6], OBJECTIVES[-1])
EACH = pytest.mark.parametrize(
    ("objective", "kind"),
    [(o, k) for o in OBJECTIVES for k in KINDS if o not in NOISY or k != "ids"],
    ids=repr,
)


def tensors(part) -> list[torch.Tensor]:
    """Every tensor of a view or of targets, of its tokens too."""
    found = [x for x in vars(part).values() if isinstance(x, torch.Tensor)]
    return found + [x for x in vars(part.tokens).values() if isinstance(x, torch.Tensor)]


@EACH
def test_the_same_seed_gives_the_same_view(objective, kind, tools):
    tokens, spec = tools.batch_of(kind), tools.spec_of(kind)
    first, again, other = (objective.view(tokens, spec, tools.seeded(s)) for s in (1, 1, 2))
    for a, b in zip(first, again):
        assert all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))
    fixed = isinstance(objective, (NextToken, AddressOnly)) and getattr(objective, "order", "") != "random"
    same = all(
        torch.equal(x, y) for a, b in zip(first, other) for x, y in zip(tensors(a), tensors(b), strict=True)
    )
    assert same == fixed


@EACH
def test_given_tokens_and_padding_carry_no_loss(objective, kind, tools):
    tokens, spec = tools.batch_of(kind), tools.spec_of(kind)
    for seed in range(5):
        view, targets = objective.view(tokens, spec, tools.seeded(seed))
        assert not (targets.scored & ~targets.tokens.real).any()
        assert not (targets.scored & targets.tokens.is_given).any()
        free = targets.tokens.real & ~targets.tokens.is_given
        if objective.name in ("next-token", "any-order", "denoising"):
            assert torch.equal(targets.scored, free)
        elif objective.name.startswith("masked"):
            assert torch.equal(targets.scored, view.hidden)
            assert not (view.hidden & view.tokens.is_given).any()
        if objective.name == "address-only":
            assert torch.equal(targets.scored, free)
            assert torch.equal(targets.scored, view.hidden)
        if objective.name == "masked-diffusion":
            assert bool((targets.scored.sum(1) >= 1).all()), "every sample is scored"


@EACH
def test_nothing_is_hidden_in_what_is_embedded(objective, kind, tools):
    """`observe` shows all the content, and is the same for any generator that there may be."""
    if isinstance(objective, AddressOnly):
        pytest.skip("the leakage floor embeds addresses alone")
    tokens, spec = tools.batch_of(kind), tools.spec_of(kind)
    view, again = objective.observe(tokens, spec), objective.observe(tokens, spec)
    assert all(torch.equal(x, y) for x, y in zip(tensors(view), tensors(again), strict=True))
    start = view.start if view.start is not None else torch.zeros_like(view.hidden)
    assert torch.equal(view.hidden & view.tokens.real, start & view.tokens.real)
    shown = view.tokens.real & ~start
    assert shown.sum(1).tolist() == tokens.length.tolist()
    for name in ("ids", "values"):
        content = getattr(tokens, name)
        if content is None:
            continue
        content = content if name == "ids" else spec.standardise(content)
        for b in range(tokens.size):
            before = content[b][tokens.real[b]]
            after = getattr(view.tokens, name)[b][shown[b]]
            order = permutation(tokens, getattr(objective, "order", "natural"), tools.seeded())[b]
            if getattr(objective, "order", "natural") in ("reversed", "centre-out"):
                before = before[order[: len(before)]]
            assert torch.equal(before, after)


@EACH
def test_an_objective_overfits_one_batch(objective, kind, tools):
    """Fifty steps on one view bring its loss down by a clear amount, for any content."""
    spec, tokens = tools.spec_of(kind), tools.batch_of(kind)
    model = tools.model_of(spec, objective).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(50):
        loss = model.loss({kind: tokens}, tools.seeded(3))[kind].value
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    # Not the last one: a density that overfits a batch has ever steeper walls.
    assert sorted(losses[-10:])[5] < losses[0] - 0.3


def test_orders_of_next_token(tools):
    tokens = tools.batch_of("ids")  # the first token of each sample is given; lengths 7, 4, 6, 7, 2
    row = list(range(7))
    for b, n in enumerate(tokens.length.tolist()):
        natural, backward, drawn = (
            NextToken(order=order).permutation(tokens, tools.seeded(1))[b].tolist()
            for order in ("natural", "reversed", "random")
        )
        assert natural == row
        assert backward == [0, *range(n - 1, 0, -1), *range(n, 7)]
        assert drawn[0] == 0
        assert sorted(drawn[:n]) == row[:n]
        assert drawn[n:] == row[n:]


def test_orders_from_the_middle_and_to_it(tools):
    """Ties go to the earlier token; given tokens stay in front and do not move the middle."""
    tokens = tools.batch_of("ids")
    centre, outside = (permutation(tokens, order, tools.seeded()).tolist() for order in ORDERS[3:])
    assert centre[0] == [0, 3, 4, 2, 5, 1, 6]  # free: 1..6, the middle between 3 and 4
    assert outside[0] == [0, 1, 6, 2, 5, 3, 4]
    assert centre[1] == [0, 2, 1, 3, 4, 5, 6]  # free: 1..3
    assert outside[1] == [0, 1, 3, 2, 4, 5, 6]
    assert centre[4] == outside[4] == list(range(7))  # free: 1


@pytest.mark.parametrize("order", ORDERS)
def test_an_order_is_a_permutation_with_given_tokens_in_front_and_padding_last(order, tools):
    tokens = tools.batch_of("values", 0, (9, 1, 5, 8))
    found = permutation(tokens, order, tools.seeded(1))
    assert torch.equal(found.sort(1).values, torch.arange(9).expand(4, -1))
    assert torch.equal(tokens.permute(found).real, tokens.real)
    assert torch.gather(tokens.real, 1, found).equal(tokens.real)
    assert torch.gather(tokens.is_given, 1, found).equal(tokens.is_given)


def test_unknown_orders_are_named():
    known = "known: natural, reversed, random, centre-out, outside-in"
    with pytest.raises(ConsilienceError, match=f"next-token: unknown order 'up'; {known}"):
        NextToken(order="up")
    with pytest.raises(ConsilienceError, match="any-order: the order is random, not natural; use next-token"):
        AnyOrder(order="natural")
    with pytest.raises(ConsilienceError, match="unknown order 'up'"):
        TwoPhase(order="up")


def test_any_order_is_next_token_in_random_orders(tools):
    tokens, spec = tools.batch_of("values"), tools.spec_of("values")
    ours, theirs = (o.view(tokens, spec, tools.seeded(1)) for o in (AnyOrder(), NextToken(order="random")))
    for a, b in zip(ours, theirs):
        assert all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


# Phases.


def test_phases_follow_one_another():
    objective = TwoPhase(switch=0.25, order="reversed", rate=0.3)
    assert objective.at(0.0) == objective.at(0.24) == NextToken(order="reversed")
    assert objective.at(0.25) == objective.at(0.99) == Masked(rate=0.3)
    for other in OBJECTIVES:
        if not isinstance(other, TwoPhase):
            assert other.at(0.0) is other.at(0.9) is other, "most objectives have no phases"


@pytest.mark.parametrize("kind", KINDS)
def test_both_phases_train_one_head(kind, tools):
    objective, spec, tokens = TwoPhase(), tools.spec_of(kind), tools.batch_of(kind)
    model = tools.model_of(spec, objective)
    first = model.loss({kind: tokens}, tools.seeded(1), objective=objective.at(0.0))[kind]
    last = model.loss({kind: tokens}, tools.seeded(1), objective=objective.at(0.9))[kind]
    plain = model.loss({kind: tokens}, tools.seeded(1))[kind]
    assert (first.kind, last.kind, plain.kind) == ("exact", "surrogate", "surrogate")
    assert torch.equal(last.value, plain.value)
    alone = tools.model_of(spec, NextToken()).loss({kind: tokens}, tools.seeded(1))[kind]
    assert torch.equal(first.value, alone.value)


def test_phases_with_different_heads_are_refused(tools):
    class Torn(TwoPhase):
        @property
        def last(self):
            return Denoising()

    with pytest.raises(
        ConsilienceError, match="next-token and denoising need different heads for values tokens"
    ):
        Torn().likelihoods(tools.spec_of("values"))


@pytest.mark.parametrize("switch", [0.0, 1.0, -1.0])
def test_a_switch_outside_of_training_is_refused(switch):
    with pytest.raises(ConsilienceError, match="switch must lie in"):
        TwoPhase(switch=switch)


@pytest.mark.parametrize("rate", [0.15, 0.5, 0.9])
def test_masked_hides_at_its_rate(rate, tools):
    source = GaussianAR1(length=20)
    view, _ = Masked(rate=rate).view(source.tokens(2000, tools.seeded()), source.spec, tools.seeded(1))
    assert float(view.hidden.float().mean()) == pytest.approx(rate, abs=0.01)


def test_a_random_rate_is_uniform(tools):
    source = GaussianAR1(length=40)
    view, _ = Masked().view(source.tokens(2000, tools.seeded()), source.spec, tools.seeded(1))
    share = view.hidden.float().mean(1).sort().values
    assert torch.allclose(share, torch.linspace(0, 1, 2000), atol=0.05)


def test_masked_diffusion_hides_every_number_of_tokens_alike(tools):
    """k is uniform in 1..n; each hidden row weighs n / k, so that a sample always weighs n."""
    source = GaussianAR1(length=8)
    tokens = replace(source.tokens(4000, tools.seeded()), length=torch.tensor([8, 3] * 2000))
    view, targets = MaskedDiffusion().view(tokens, source.spec, tools.seeded(1))
    k = view.hidden.sum(1)
    for n, samples in ((8, slice(0, None, 2)), (3, slice(1, None, 2))):
        share = torch.bincount(k[samples], minlength=n + 1) / 2000
        assert torch.allclose(share[1 : n + 1], torch.full((n,), 1 / n), atol=0.03)
    assert torch.allclose((targets.weight * targets.scored).sum(1), tokens.length.float())


def test_denoising_mixes_noise_and_data(tools):
    """x_t = (1 - t) noise + t x in standardised units; the velocity is x - noise; given tokens stay clean."""
    tokens, spec = tools.batch_of("values"), tools.spec_of("values")
    view, targets = Denoising().view(tokens, spec, tools.seeded(1))
    clean = spec.standardise(tokens.values)
    time = view.time[view.time_index]
    free = targets.scored
    expected = clean - (1 - time[..., None]) * targets.velocity
    assert torch.allclose(view.tokens.values[free], expected[free], atol=1e-5)
    assert torch.equal(view.tokens.values[~free], clean[~free])
    assert bool((time[~free] == 1).all())
    assert len(set(view.time[:-1].tolist())) == tokens.size


def test_symbols_beside_noise_are_erased_with_the_same_clock(tools):
    tokens, spec = tools.batch_of("mixed", 0, (7,) * 3000), tools.spec_of("mixed")
    view, targets = Denoising().view(tokens, spec, tools.seeded(1))
    lost = view.tokens.ids == spec.vocabulary
    assert not (lost & ~targets.scored).any()
    late = view.time[:-1] > 0.8
    assert float(lost[:, 1:][late].float().mean()) == pytest.approx(0.1, abs=0.03)
    assert float(lost[:, 1:][~late].float().mean()) == pytest.approx(0.6, abs=0.03)


def test_stratified_numbers_fill_every_stratum():
    for count in (1, 2, 7, 1000):
        numbers = stratified(count, torch.Generator().manual_seed(0), torch.device("cpu"))
        assert (numbers * count).long().sort().values.tolist() == list(range(count))


# A loss says what it is.


def loss_of(kind: str, nats: float = 2.0, tokens: int = 4) -> Loss:
    return Loss(value=torch.tensor(nats), nats=torch.tensor(nats).double(), tokens=tokens, kind=kind)


def test_a_sum_of_losses_is_of_the_weaker_kind():
    assert (loss_of("exact") + loss_of("exact")).kind == "exact"
    assert (loss_of("exact") + loss_of("bound")).kind == "bound"
    assert (loss_of("surrogate") + loss_of("bound")).kind == "surrogate"
    total = loss_of("exact", 2.0, 4) + loss_of("exact", 4.0, 2)
    assert total.nats_per_token == pytest.approx(1.0)
    assert loss_of("exact", 0.0, 0).nats_per_token == 0.0


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_kinds_of_loss(objective, tools):
    """Training a flow is a surrogate, its ODE is exact; constrained values have no likelihood at all."""
    kinds = {
        "next-token": "exact",
        "any-order": "exact",
        "address-only": "exact",
        "two-phase": "surrogate",
        "masked": "surrogate",
        "masked-diffusion": "bound",
        "denoising": "surrogate",
    }
    tokens, spec = tools.batch_of("values"), tools.spec_of("values")
    for constrained in (False, True):
        spec = replace(spec, constrained=constrained)
        model = tools.model_of(spec, objective)
        trained = model.loss({"values": tokens}, tools.seeded())["values"]
        held_out = model.evaluate(tokens, seed=0)
        if objective.name == "block":
            kinds["block"] = "surrogate" if objective in NOISY else "bound"
        assert trained.kind == ("surrogate" if constrained else kinds[objective.name])
        exact = objective in NOISY and not constrained
        assert held_out.kind == ("exact" if exact else trained.kind)


@pytest.mark.parametrize("kind", ["weighted", "counts", "mixed"])
def test_a_flow_claims_no_likelihood_where_it_has_none(kind, tools):
    for objective in NOISY:
        model = tools.model_of(tools.spec_of(kind), objective)
        assert model.evaluate(tools.batch_of(kind), seed=0).kind == "surrogate"


def test_exact_nats_do_not_depend_on_the_batch(tools):
    """The held-out loss of a whole is the sum over its parts."""
    source = GaussianAR1()
    tokens = source.tokens(12, tools.seeded())
    for objective in (
        NextToken(),
        Denoising(),
        AddressOnly(),
        Block(size=1),
        Block(size=4, noise="gaussian"),
    ):
        model = tools.model_of(source.spec, objective)
        whole = model.evaluate(tokens, seed=0)
        parts = [model.evaluate(tokens.take(list(range(i, i + 4))), seed=0) for i in (0, 4, 8)]
        assert float(sum(part.nats for part in parts)) == pytest.approx(float(whole.nats), abs=1e-3)
