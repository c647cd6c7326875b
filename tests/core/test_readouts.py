"""Read-outs: many of them in one forward are those of one at a time, and every objective gets the same number."""

import numpy as np
import pytest
import torch
from torch import nn

from consilience.core import embed as embedding
from consilience.core.embed import counted_rows, embed_readouts
from consilience.core.errors import ConsilienceError
from consilience.core.model import FoundationModel
from consilience.core.objectives import Block, Denoising, Masked, MaskedDiffusion, NextToken
from consilience.core.readouts import Readout, candidates, observe_at, place_noise
from consilience.core.synthetic import GaussianAR1, MarkovChain
from consilience.core.synthetic_tokenizer import SyntheticTokenizer
from consilience.core.transformer import CoreConfig

CHAIN, SERIES = MarkovChain(), GaussianAR1()
CORE = CoreConfig(width=32, depth=4, heads=4)


def awake(model: nn.Module) -> None:
    """Noise on every weight: modulation by time starts at zero, where all times would look alike."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5


def built(source, objective) -> tuple[FoundationModel, list[np.ndarray]]:
    """A model on a source and ragged records of it."""
    torch.manual_seed(0)
    tokenizer = SyntheticTokenizer(source)
    model = FoundationModel(CORE, {"toy": tokenizer}, objective)
    awake(model)
    whole = tokenizer.decode(source.tokens(30, torch.Generator().manual_seed(6)))
    lengths = np.random.default_rng(0).integers(2, 7, 30)
    return model.eval(), [record[:n] for record, n in zip(whole, lengths)]


@pytest.fixture(
    scope="module",
    params=[Denoising(), Block(size=2, noise="gaussian"), Block(size=None, noise="gaussian")],
    ids=repr,
)
def denoiser(request):
    return built(SERIES, request.param)


@pytest.fixture(scope="module")
def masked():
    return built(CHAIN, Masked())


def read(model, records, readouts, **options):
    found = embed_readouts(model, records, "toy", readouts, **options)
    return {readout: embedding.vectors for readout, embedding in found.items()}


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 8, 12, 32])
def test_every_objective_has_the_same_number_of_candidates(depth) -> None:
    objectives = [NextToken(), Masked(), MaskedDiffusion(), Block(), Denoising(), Block(noise="gaussian")]
    found = [candidates(objective, depth) for objective in objectives]
    assert {len(set(readouts)) for readouts in found} == {3 * min(depth, 4)}
    for readouts in found:
        layers = {readout.layer for readout in readouts}
        assert -1 in layers and 0 not in layers and max(layers) <= depth
    assert {readout.time for readout in found[-1]} == {1.0, 0.9, 0.7}
    assert {readout.pool for readout in found[0]} == {"mean", "last", "max"}


def test_many_at_once_are_those_of_one_at_a_time(masked, denoiser) -> None:
    for model, records in (masked, denoiser):
        readouts = candidates(model.objective, 4)
        together = read(model, records, readouts)
        assert list(together) == list(readouts)
        for readout in readouts:
            assert together[readout].shape == (30, 32) and together[readout].dtype == np.float32
            assert np.array_equal(together[readout], read(model, records, [readout])[readout]), readout
            if readout.time == 1:
                single = model.embed(records, layer=readout.layer, pool=readout.pool).vectors
                assert np.array_equal(together[readout], single)
        distinct = {together[readout].tobytes() for readout in readouts}
        assert len(distinct) == len(readouts)


def test_one_forward_for_each_time(denoiser, monkeypatch) -> None:
    model, records = denoiser
    calls, forward = [], FoundationModel.forward

    def counted(self, *args, **kwargs):
        calls.append(1)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(FoundationModel, "forward", counted)
    read(model, records, candidates(model.objective, 4), batch_size=30)
    assert len(calls) == 3


def test_noisy_read_outs_depend_on_neither_batch_nor_order(denoiser) -> None:
    model, records = denoiser
    readouts = [Readout(layer=2, time=0.7), Readout(time=0.9, pool="max")]
    whole, again = read(model, records, readouts), read(model, records, readouts)
    order = np.random.default_rng(1).permutation(30)
    shuffled = read(model, [records[i] for i in order], readouts, batch_size=4)
    for readout in readouts:
        assert np.array_equal(whole[readout], again[readout]), "to the bit"
        assert np.allclose(whole[readout][order], shuffled[readout], atol=1e-5)
        assert not np.allclose(whole[readout], model.embed(records, layer=readout.layer).vectors, atol=1e-2)


def test_the_view_at_a_time_is_the_stated_mixture(denoiser) -> None:
    model, records = denoiser
    tokenizer = model.tokenizers["toy"]
    tokens = tokenizer.encode(records)
    clean = tokenizer.spec.standardise(tokens.values)[tokens.real]
    view = observe_at(model.objective, tokens, tokenizer.spec, 0.7)
    counted = counted_rows(view)
    noise = place_noise(tokens.width, 1).expand(30, -1, -1)[tokens.real]
    assert torch.allclose(view.tokens.values[counted], 0.3 * noise + 0.7 * clean)
    assert torch.equal(view.time[view.time_index][counted], torch.full((tokens.n_tokens,), 0.7))
    assert torch.equal(place_noise(9, 1)[:, :4], place_noise(4, 1)), (
        "rows do not depend on how many there are"
    )


def test_max_runs_over_real_rows_alone(masked) -> None:
    model, records = masked
    found = model.embed(records, layer=2, pool="max").vectors
    for record, vector in zip(records[:5], found):
        with torch.no_grad():
            tokens = model.tokenizers["toy"].encode([record])
            view = model.objective.observe(tokens, model.tokenizers["toy"].spec)
            rows = model.forward({"toy": view}, layers=True).layers[2][0, : len(record)]
        assert np.allclose(rows.amax(0).numpy(), vector, atol=1e-5)


def test_failures_are_the_same_for_all(masked, monkeypatch) -> None:
    model, records = masked
    monkeypatch.setattr(embedding, "CHUNK", 2)
    mixed = [records[0], np.array([99]), records[1], np.array([])]
    readouts = [Readout(), Readout(layer=1, pool="max")]
    found = embed_readouts(model, mixed, "toy", readouts, ids=["a", "b", "c", "d"])
    for result in found.values():
        assert result.ids.tolist() == ["a", "c"] and result.index.tolist() == [0, 2]
        assert [(f.index, f.id) for f in result.failures] == [(1, "b"), (3, "d")]
        assert result.vectors.shape == (2, 32)


def test_what_a_model_cannot_do_is_refused(masked) -> None:
    model, records = masked
    with pytest.raises(ConsilienceError, match="masked knows no noise"):
        read(model, records, [Readout(time=0.9)])
    with pytest.raises(ConsilienceError, match="layer must be -1"):
        read(model, records, [Readout(layer=5)])
    with pytest.raises(ConsilienceError, match="no read-out is asked for"):
        read(model, records, [])
    with pytest.raises(ConsilienceError, match="time of a read-out"):
        Readout(time=1.5)
    with pytest.raises(ConsilienceError, match="unknown pool 'median'"):
        Readout(pool="median")
