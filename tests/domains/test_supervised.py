"""A core trained on labels learns, repeats itself, keeps its best weights and never sees a test label."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from consilience.core.errors import ConsilienceError
from consilience.core.lora import ADAPTED, LoraOptions
from consilience.core.model import FoundationModel
from consilience.core.objectives import Masked, NextToken
from consilience.core.training_config import TrainingConfig
from consilience.core.transformer import CoreConfig
from consilience.domains import headed, supervised
from consilience.domains.base import Task
from consilience.domains.molecules.domain import DOMAIN
from consilience.domains.preparation import Prepared, prepare
from consilience.domains.supervised import fit_supervised

CORE = CoreConfig(width=32, depth=2, heads=4)
SHORT = TrainingConfig(steps=6, tokens_per_batch=512, learning_rate=4e-3)
LOGP = Task(name="logP", label="logP", kind="regression")
RICH = Task(name="rich in nitrogen", label="nitrogen", kind="classification")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    """400 molecules; beside logP whether they have two nitrogens, unknown for every tenth."""
    collection = DOMAIN.bundled()
    count = np.array([sum(letter in "nN" for letter in smiles) for smiles in collection.records])
    classes = np.where(count >= 2, "yes", "no").astype(object)
    classes[::10] = ""
    collection = replace(collection, labels={"logP": collection.labels["logP"], "nitrogen": classes})
    return prepare(DOMAIN, collection, tokenizer={"max_length": 64}, limit=400)


def fitted(prepared, task=LOGP, **options):
    return fit_supervised(
        prepared, task, **{"core": CORE, "training": SHORT, "objective": Masked(), **options}
    )


def relabelled(prepared: Prepared, task: Task, part: str) -> Prepared:
    labels = prepared.collection.labels[task.label].copy()
    index = getattr(prepared.split, part)
    labels[index] = np.random.default_rng(0).permutation(labels[index])
    return replace(prepared, collection=replace(prepared.collection, labels={task.label: labels}))


def test_it_learns(prepared) -> None:
    training = TrainingConfig(steps=100, tokens_per_batch=1024, learning_rate=4e-3)
    found = fitted(prepared, training=training)
    assert found.result.metrics["r2"] > 0.5
    assert found.result.method == "supervised" and found.labels == found.result.n_train
    assert (found.result.test_index == prepared.split.test).all()
    assert (found.result.truth == prepared.collection.labels["logP"][prepared.split.test]).all()
    classes = fitted(prepared, RICH, training=replace(training, steps=40), objective=NextToken())
    assert classes.result.metrics["macro_f1"] > 0.7
    assert set(classes.result.predicted) == {"yes", "no"}
    assert "" not in classes.result.truth


@pytest.mark.parametrize("task", [LOGP, RICH], ids=str)
def test_test_labels_touch_nothing(prepared, task) -> None:
    honest, other = fitted(prepared, task), fitted(relabelled(prepared, task, "test"), task)
    assert honest.curve == other.curve
    common, ours, theirs = np.intersect1d(
        honest.result.test_index, other.result.test_index, return_indices=True
    )
    assert len(common) > 60
    assert np.allclose(
        *(
            np.unique(run.result.predicted, return_inverse=True)[1][rows]
            if task is RICH
            else run.result.predicted[rows]
            for run, rows in ((honest, ours), (other, theirs))
        )
    )
    assert honest.result.metrics != other.result.metrics
    assert fitted(relabelled(prepared, task, "train"), task).curve != honest.curve


def test_a_seed_repeats_and_another_does_not(prepared) -> None:
    first, again, other = fitted(prepared), fitted(prepared), fitted(prepared, seed=1)
    assert first.curve == again.curve
    assert (first.result.predicted == again.result.predicted).all()
    assert (first.result.predicted != other.result.predicted).any()


def test_augmentation_is_a_choice(prepared, monkeypatch) -> None:
    seen = []
    encode = type(prepared.tokenizer).encode

    def noted(self, records, *, generator=None):
        seen.append(generator is not None)
        return encode(self, records, generator=generator)

    monkeypatch.setattr(type(prepared.tokenizer), "encode", noted)
    fitted(prepared, augment=True)
    assert sum(seen) == SHORT.steps, "training batches alone"
    seen.clear()
    fitted(prepared, augment=False)
    assert not any(seen)


def test_early_stopping_keeps_the_best(prepared) -> None:
    """Far too high a learning rate after a few steps: later weights are worse, and are not kept."""
    wild = TrainingConfig(steps=40, tokens_per_batch=512, learning_rate=0.05, warmup=1.0, decay=0.0, clip=1e3)
    found = fitted(prepared, training=wild)
    losses = dict(found.curve)
    assert found.best_step == min(losses, key=losses.__getitem__) < found.steps <= 40
    # What came back reaches the loss of that step.
    target = supervised._Target.of(prepared.collection.labels["logP"][prepared.split.train], LOGP)
    run = headed.HeadedModel(model=found.model, head=found.head, name="molecules", target=target)
    wanted = target.encode(prepared.collection.labels["logP"][prepared.split.validation])
    with torch.no_grad():
        loss = target.loss(run.outputs(prepared.records("validation")), wanted)
    assert float(loss) == pytest.approx(losses[found.best_step], abs=1e-4)
    worse = [loss for step, loss in found.curve if step > found.best_step]
    assert min(worse) > losses[found.best_step]
    assert found.steps == 40 or len(worse) == headed.PATIENCE


def test_a_part_of_the_labels(prepared) -> None:
    found = fitted(prepared, label_fraction=0.1)
    assert found.labels == round(0.1 * len(prepared.split.train))
    assert fitted(prepared, RICH, label_fraction=0.01).labels == 4
    assert len(found.result.predicted) == len(prepared.split.test)


def test_adapters_change_the_core_by_low_rank_and_are_merged(prepared) -> None:
    pytest.importorskip("peft")
    torch.manual_seed(5)
    start = FoundationModel(CORE, {"molecules": prepared.tokenizer}, Masked())
    found = fitted(prepared, init=start, lora=LoraOptions(rank=2))
    before, after = start.core.state_dict(), found.model.core.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.split(".")[-2] in ADAPTED for name in changed)
    for name in changed:
        singular = torch.linalg.svdvals((after[name] - before[name]).double())
        assert singular[2] < 1e-4 * singular[0], "rank 2"
    assert all(weight.requires_grad for weight in found.model.core.parameters())
    with pytest.raises(ConsilienceError, match="a frozen core takes no adapters"):
        fitted(prepared, init=start, lora=LoraOptions(), freeze_core=True)


def test_fine_tuning_starts_from_a_model(prepared, tmp_path) -> None:
    torch.manual_seed(5)
    model = FoundationModel(CORE, {"molecules": prepared.tokenizer}, Masked())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tiny = TrainingConfig(steps=1, tokens_per_batch=512, learning_rate=1e-9, weight_decay=0.0)
    found = fitted(prepared, init=model, training=tiny)
    for part in ("core.", "ports.molecules_port.embed."):
        for name, tensor in found.model.state_dict().items():
            if name.startswith(part):
                assert torch.allclose(tensor, before[name], atol=1e-6), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "untouched"
    model.save(tmp_path / "run")
    of_model, of_folder = fitted(prepared, init=model), fitted(prepared, init=tmp_path / "run")
    assert of_model.curve == of_folder.curve != fitted(prepared).curve
    # A model of another science gives its core alone.
    foreign = FoundationModel(CORE, {"elsewhere": prepared.tokenizer}, Masked())
    started = fitted(prepared, init=foreign, training=tiny).model.core.state_dict()
    assert all(
        torch.allclose(tensor, started[name], atol=1e-6) for name, tensor in foreign.core.state_dict().items()
    )
    with pytest.raises(ConsilienceError, match="has width 32, this one 64"):
        fitted(prepared, init=model, core=replace(CORE, width=64))


def test_a_frozen_core_does_not_move(prepared) -> None:
    torch.manual_seed(5)
    model = FoundationModel(CORE, {"molecules": prepared.tokenizer}, Masked())
    found = fitted(prepared, init=model, freeze_core=True)
    ours, theirs = found.model.state_dict(), model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name.startswith("core."))
    embedder = [name for name in ours if ".embed." in name]
    assert any(not torch.equal(ours[name], theirs[name]) for name in embedder)
    assert all(parameter.requires_grad for parameter in found.model.parameters())


def test_what_cannot_be_trained_on(prepared) -> None:
    def with_labels(change) -> Prepared:
        labels = prepared.collection.labels["logP"].copy()
        change(labels)
        return replace(prepared, collection=replace(prepared.collection, labels={"logP": labels}))

    def constant(labels) -> None:
        labels[prepared.split.train] = 1.0

    def unknown(labels) -> None:
        labels[prepared.split.validation] = np.nan

    with pytest.raises(ConsilienceError, match="1 different training label"):
        fitted(with_labels(constant))
    with pytest.raises(ConsilienceError, match="no validation record has a known label"):
        fitted(with_labels(unknown))
