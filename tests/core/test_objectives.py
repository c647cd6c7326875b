"""What every objective promises of its views, weights and kinds of loss."""

from dataclasses import replace

import pytest
import torch

from consilience.core.objectives import Denoising, Masked, MaskedDiffusion, NextToken
from consilience.core.objectives.base import stratified
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
]
EACH = pytest.mark.parametrize(
    ("objective", "kind"),
    [(o, k) for o in OBJECTIVES for k in KINDS if o != Denoising() or k != "ids"],
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
    fixed = isinstance(objective, NextToken) and objective.order != "random"
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
        if objective.name in ("next-token", "denoising"):
            assert torch.equal(targets.scored, free)
        elif objective.name.startswith("masked"):
            assert torch.equal(targets.scored, view.hidden)
            assert not (view.hidden & view.tokens.is_given).any()
        if objective.name == "masked-diffusion":
            assert bool((targets.scored.sum(1) >= 1).all()), "every sample is scored"


@EACH
def test_nothing_is_hidden_in_what_is_embedded(objective, kind, tools):
    """`observe` shows all the content, and is the same for any generator that there may be."""
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
            if objective == NextToken(order="reversed"):
                after = torch.cat([after[:1], after[1:].flip(0)])  # the given token stays in front
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
        assert trained.kind == ("surrogate" if constrained else kinds[objective.name])
        exact = objective.name == "denoising" and not constrained
        assert held_out.kind == ("exact" if exact else trained.kind)


@pytest.mark.parametrize("kind", ["weighted", "counts", "mixed"])
def test_a_flow_claims_no_likelihood_where_it_has_none(kind, tools):
    model = tools.model_of(tools.spec_of(kind), Denoising())
    assert model.evaluate(tools.batch_of(kind), seed=0).kind == "surrogate"


def test_exact_nats_do_not_depend_on_the_batch(tools):
    """The held-out loss of a whole is the sum over its parts."""
    source = GaussianAR1()
    tokens = source.tokens(12, tools.seeded())
    for objective in (NextToken(), Denoising()):
        model = tools.model_of(source.spec, objective)
        whole = model.evaluate(tokens, seed=0)
        parts = [model.evaluate(tokens.take(list(range(i, i + 4))), seed=0) for i in (0, 4, 8)]
        assert float(sum(part.nats for part in parts)) == pytest.approx(float(whole.nats), abs=1e-3)
