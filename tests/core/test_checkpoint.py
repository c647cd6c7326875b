"""Saved models come back to the bit, and broken or foreign folders are refused with one clear line."""

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from consilience.core.checkpoint import take_core
from consilience.core.errors import ConsilienceError
from consilience.core.model import FoundationModel
from consilience.core.objectives import Denoising, Masked, NextToken
from consilience.core.synthetic import GaussianAR1, MarkovChain
from consilience.core.synthetic_tokenizer import SyntheticTokenizer

CHAIN, AR1 = MarkovChain(), GaussianAR1(mean=2.0, spread=0.5)


def build(tools, objective, *sources, seed: int = 0) -> FoundationModel:
    torch.manual_seed(seed)
    tokenizers = {source.name: SyntheticTokenizer(source) for source in sources}
    model = FoundationModel(tools.tiny, tokenizers, objective, {"data": "synthetic", "seed": seed})
    tools.awaken(model, seed)
    return model.eval()


@pytest.mark.parametrize(
    ("objective", "sources"),
    [(NextToken(order="reversed"), (CHAIN, AR1)), (Masked(rate=0.3), (AR1,)), (Denoising(), (AR1,))],
    ids=repr,
)
def test_save_and_load_to_the_bit(objective, sources, tools, tmp_path):
    model = build(tools, objective, *sources)
    folder = model.save(tmp_path / "new" / "model")
    again = FoundationModel.load(folder)
    assert again.objective == objective
    assert again.core_config == model.core_config
    assert again.provenance == model.provenance
    assert again.domains == model.domains
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    for source in sources:
        records = SyntheticTokenizer(source).decode(source.tokens(9, tools.seeded()))
        before, after = (m.embed(records, domain=source.name).vectors for m in (model, again))
        assert np.array_equal(before, after)
        drawn = [m.generate(5, domain=source.name, seed=3) for m in (model, again)]
        assert all(np.array_equal(a, b) for a, b in zip(*drawn))


@pytest.fixture()
def saved(tools, tmp_path) -> Path:
    return build(tools, NextToken(), CHAIN).save(tmp_path / "model")


def test_the_folder_holds_what_it_says_and_no_pickle(saved):
    assert sorted(p.name for p in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    for path in saved.iterdir():
        assert not zipfile.is_zipfile(path), "torch.save writes zip archives of pickles"
        assert path.read_bytes()[:1] != b"\x80", "a pickle begins with its protocol"
        assert path.stat().st_mode & 0o777 == (saved / "config.json").stat().st_mode & 0o777
    config = json.loads((saved / "config.json").read_text())
    assert config["core"]["width"] == 32
    assert config["objective"]["options"] == {"head": "gaussian", "order": "natural"}
    assert config["provenance"] == {"data": "synthetic", "seed": 0}
    assert set(config["versions"]) >= {"torch", "consilience"}
    card = (saved / "README.md").read_text()
    assert card.startswith("---\n")
    assert "library_name: consilience" in card
    assert "next-token" in card


def test_saving_twice_replaces_the_first(saved, tools):
    other = build(tools, NextToken(), CHAIN, seed=9)
    other.save(saved)
    assert len(list(saved.iterdir())) == 3
    assert torch.equal(FoundationModel.load(saved).core.norm, other.core.norm)


def test_the_hub_mixin_reads_and_writes_the_same_folder(saved, tmp_path):
    model = FoundationModel.from_pretrained(str(saved))
    model.save_pretrained(tmp_path / "hub")
    again = FoundationModel.from_pretrained(tmp_path / "hub")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
    config = [json.loads((folder / "config.json").read_text()) for folder in (saved, tmp_path / "hub")]
    assert config[0] == config[1]


def edit(change: Callable[[dict], object]) -> Callable[[Path], object]:
    """A fault that changes config.json."""

    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    return spoil


def keep(share: float, name: str) -> Callable[[Path], object]:
    """A fault that cuts a file off."""

    def spoil(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(share * len(data))])

    return spoil


def rename_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["stranger"] = tensors.pop("core.norm")
    save_file(tensors, folder / "model.safetensors")


def diverged(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["core.norm"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors")


def other_library(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 768}))


W, C = "model.safetensors", "config.json"
FAULTS = {
    "weights cut in the tensors": (keep(0.9, W), "truncated or not a safetensors file"),
    "weights cut in the header": (keep(0.001, W), "truncated or not a safetensors file"),
    "weights empty": (keep(0.0, W), "truncated or not a safetensors file"),
    "weights missing": (lambda f: (f / W).unlink(), "holds no model.safetensors"),
    "a pickle as weights": (
        lambda f: torch.save({"a": torch.ones(1)}, f / W),
        "truncated or not a safetensors file",
    ),
    "other weights": (rename_weight, "1 weights missing.*core.norm.*1 unknown.*stranger"),
    "weights of a run that diverged": (diverged, "weight 'core.norm' holds NaN or infinity"),
    "config missing": (lambda f: (f / C).unlink(), "holds no config.json"),
    "config cut": (keep(0.5, C), "truncated or not JSON"),
    "config binary": (lambda f: (f / C).write_bytes(b"\xff\xfe\x00"), "truncated or not JSON"),
    "config of another library": (other_library, "belongs to another library"),
    "config a list": (lambda f: (f / C).write_text("[1]"), "belongs to another library"),
    "config of the future": (edit(lambda c: c.update(format=99)), "has format 99"),
    "another width": (edit(lambda c: c["core"].update(width=64)), r"weight '.*' is \(.*\), config.json asks"),
    "a deeper core": (edit(lambda c: c["core"].update(depth=3)), "weights missing"),
    "an unknown option": (
        edit(lambda c: c["core"].update(colour=1)),
        "not a consilience model of this version",
    ),
    "an unknown tokenizer": (
        edit(lambda c: c["domains"]["markov-chain"].update(tokenizer="nowhere.at:All")),
        "cannot import 'nowhere.at'",
    ),
    "a tokenizer that is none": (
        edit(lambda c: c["domains"]["markov-chain"].update(tokenizer="json:JSONDecoder")),
        "is not a Tokenizer",
    ),
    "no objective": (edit(lambda c: c.pop("objective")), "not a consilience model of this version"),
    "domains a list": (edit(lambda c: c.update(domains=[1])), "not a consilience model of this version"),
    "no science": (edit(lambda c: c.update(domains={})), "at least one science"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_and_foreign_checkpoints_are_refused(fault, saved):
    spoil, message = FAULTS[fault]
    spoil(saved)
    with pytest.raises(ConsilienceError, match=message) as caught:
        FoundationModel.load(saved)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConsilienceError, match="no model at"):
        FoundationModel.load(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConsilienceError, match="no model at"):
        FoundationModel.load(tmp_path / "file")


def test_a_core_is_taken_into_another_science(saved, tools):
    """`--init-core`: the weights of the core move, those of the port do not."""
    target = build(tools, Denoising(), AR1, seed=4)
    port = {name: p.clone() for name, p in target.ports.named_parameters()}
    take_core(target, saved)
    source = FoundationModel.load(saved)
    for name, weight in source.core.state_dict().items():
        assert torch.equal(target.core.state_dict()[name], weight)
    assert all(torch.equal(port[name], p) for name, p in target.ports.named_parameters())


def test_a_core_of_another_size_is_refused(saved, tools):
    for option, value in (("width", 64), ("depth", 3), ("heads", 2), ("mlp", "swiglu")):
        core = replace(tools.tiny, **{option: value})
        model = FoundationModel(core, {"ar1": SyntheticTokenizer(AR1)}, Masked())
        with pytest.raises(ConsilienceError, match=f"has {option}.*train with the same size"):
            take_core(model, saved)


@pytest.mark.parametrize(
    "fault", ["weights cut in the tensors", "weights missing", "config cut", "other weights"]
)
def test_a_core_from_a_broken_folder_is_refused(fault, saved, tools):
    model = build(tools, Masked(), AR1)
    before = {name: w.clone() for name, w in model.state_dict().items()}
    FAULTS[fault][0](saved)
    with pytest.raises(ConsilienceError):
        take_core(model, saved)
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items())


def test_a_repository_that_cannot_be_reached_is_one_clear_line(saved):
    with pytest.raises(ConsilienceError, match="no model at no/such/folder: neither a folder"):
        FoundationModel.from_pretrained("no/such/folder")
    with pytest.raises(ConsilienceError, match="no model at nobody/nothing: neither a folder"):
        FoundationModel.from_pretrained("nobody/nothing", local_files_only=True)
    with pytest.raises(ConsilienceError, match="unknown option 'colour'"):
        FoundationModel.from_pretrained("nobody/nothing", colour=1)
