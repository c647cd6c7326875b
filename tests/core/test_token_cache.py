"""A token cache gives back what the tokenizer gave, epoch by epoch, whoever reads it, and says when it is damaged."""

import json
import os
import pickle
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from consilience.core import cache_writer
from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.cache_plan import MANIFEST, CachePlan, is_cache
from consilience.core.cache_writer import is_random, write_cache
from consilience.core.errors import ConsilienceError
from consilience.core.feed import Source, TokenFeed
from consilience.core.loader import StepLoader
from consilience.core.token_cache import TokenCache
from consilience.core.tokenizer import Tokenizer

SPEC = TokenSpec(
    name="everything", vocabulary=300, channels=3, addresses=70_000, coordinates=2, weighted=True
)
N = 200


class Everything(Tokenizer[list[int]]):
    """A record is a seed; its tokens use every field of a batch. `noise` draws values and lengths in training."""

    science = "everything"
    spec = SPEC

    def __init__(self, noise: bool = False) -> None:
        self.noise = noise

    @classmethod
    def fit(cls, records, **options):  # type: ignore[no-untyped-def]
        return cls(**options)

    def state(self):  # type: ignore[no-untyped-def]
        return {"noise": self.noise}

    def decode(self, tokens):  # type: ignore[no-untyped-def]
        raise NotImplementedError

    def template(self, n, *, generator, open_end=False):  # type: ignore[no-untyped-def]
        raise NotImplementedError

    def encode(self, records, *, generator=None):  # type: ignore[no-untyped-def]
        extra = 0
        if self.noise and generator is not None:
            extra = int(torch.randint(1, 10**6, (), generator=generator))
        return TokenBatch.concatenate([self._one(record, extra) for record in records])

    def _one(self, record: int, extra: int) -> TokenBatch:
        generator = torch.Generator().manual_seed(1000 + record + 1_000_003 * extra)
        n = int(torch.randint(1, 12, (1,), generator=generator))
        return TokenBatch(
            length=torch.tensor([n]),
            ids=torch.randint(300, (1, n), generator=generator),
            values=torch.randn(1, n, 3, generator=generator),
            weight=torch.rand(1, n, 3, generator=generator),
            address=torch.randint(70_000, (1, n), generator=generator),
            positions=torch.randn(1, n, 2, generator=generator),
            given=torch.arange(n)[None] < record % 2,
            exposure=torch.rand(1, generator=generator),
        ).validate(SPEC)


def plan_of(**changes: object) -> CachePlan:
    settings = {
        "science": "everything", "tokenizer": Everything(), "parts": {"train": 150, "validation": 50}, "draws": 0,
        "data": {"fingerprint": "abc"}, "chunk_records": 8, "shard_bytes": 12_000,
    }  # fmt: skip
    return CachePlan(**settings | changes)  # type: ignore[arg-type]


PARTS = {"train": np.arange(0, N)[np.arange(N) % 4 > 0], "validation": np.arange(0, N, 4)}
COLUMNS = {"id": np.arange(N).astype(str), "part": np.where(np.arange(N) % 4 > 0, "train", "validation")}


def written(folder: Path, **changes: object) -> TokenCache:
    return write_cache(folder, plan_of(**changes), list(range(N)), PARTS, COLUMNS)


def assert_same(a: TokenBatch, b: TokenBatch) -> None:
    for field in fields(TokenBatch):
        one, other = getattr(a, field.name), getattr(b, field.name)
        # A cache refuses tokens with pairs; conditions and contexts are put beside its tokens by whoever trains.
        if field.name in ("pairs", "conditions", "context"):
            assert one is None and other is None
            continue
        assert one.dtype == other.dtype and torch.equal(one, other), field.name


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> TokenCache:
    return written(tmp_path_factory.mktemp("caches") / "cache")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> TokenCache:
    return written(tmp_path_factory.mktemp("caches") / "drawn", tokenizer=Everything(noise=True), draws=3)


def test_batches_are_those_of_the_tokenizer(cache) -> None:
    assert len([s for s in cache.shards if s["part"] == "train"]) > 2, "a batch should cross shards"
    part, rng = cache.part("train"), np.random.default_rng(0)
    for size in (1, 7, 40):
        index = rng.permutation(150)[:size]
        assert_same(part.tokens(index, 0), Everything().encode(PARTS["train"][index].tolist()))
    one_shard = np.array([3, 1, 2])
    assert_same(part.tokens(one_shard, 0), Everything().encode(PARTS["train"][one_shard].tolist()))
    assert np.array_equal(part.lengths(0), Everything().lengths(PARTS["train"].tolist()))
    assert np.array_equal(cache.records()["id"].astype(str), COLUMNS["id"])


def feeds(cache: TokenCache, **changes: object) -> tuple[TokenFeed, TokenFeed]:
    settings = {"steps": 60, "tokens_per_batch": 64, "seed": 3} | changes
    records = Source(records=PARTS["train"].tolist(), tokenizer=Everything())
    return TokenFeed({"a": cache.source("train")}, **settings), TokenFeed({"a": records}, **settings)  # type: ignore[arg-type]


def test_a_feed_from_the_cache_is_that_from_the_records(cache) -> None:
    ours, records = feeds(cache)
    for step in (0, 1, 30, 59, 2):
        assert_same(ours[step][1], records[step][1])
    assert ours.epoch_of(59) == records.epoch_of(59)


@pytest.mark.parametrize("source", ["cache", "records"])
def test_workers_do_not_change_batches(source, cache) -> None:
    feed = feeds(cache)[source == "records"]
    alone = list(StepLoader(feed, 0, pin=False))
    helped = list(StepLoader(feed, 2, pin=False))
    assert len(alone) == len(helped) == 60
    for (name, a), (other, b) in zip(alone, helped, strict=True):
        assert name == other
        assert_same(a, b)


def test_a_loader_goes_on_at_any_step(cache) -> None:
    whole = list(StepLoader(feeds(cache)[0], 0, pin=False))
    later = StepLoader(feeds(cache)[0], 2, pin=False)
    later.steps.first = 41
    for (_, a), (_, b) in zip(whole[41:], later, strict=True):
        assert_same(a, b)


def test_little_travels_to_a_worker(cache) -> None:
    feed = feeds(cache, steps=100_000)[0]
    feed[7]  # maps are open
    sent = pickle.dumps(feed)
    assert len(sent) < 8_000
    assert_same(pickle.loads(sent)[5][1], feed[5][1])


def test_pinning_reaches_every_tensor(cache, monkeypatch) -> None:
    from torch.utils.data._utils import pin_memory

    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda self, *_: self + 1 if self.dtype != torch.bool else ~self
    )
    name, batch = feeds(cache)[0][0]
    pairs = torch.zeros(batch.size, batch.width, batch.width, dtype=torch.uint8)
    beside = replace(batch, pairs=pairs, conditions=torch.zeros(batch.size, 2))
    batch = replace(beside, context={"other": beside})
    sent, pinned = pin_memory.pin_memory((name, batch))
    assert sent == name and isinstance(pinned, TokenBatch)
    for ours, theirs in ((pinned, batch), (pinned.context["other"], beside)):
        tensors = [f.name for f in fields(TokenBatch) if f.name != "context"]
        assert not any(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in tensors)


def test_epochs_read_their_draws(drawn) -> None:
    part = drawn.part("train")
    assert part.draws == 3 and drawn.part("validation").draws == 1
    first, second = part.tokens(np.arange(20), 0), part.tokens(np.arange(20), 1)
    assert not torch.equal(first.values[:, 0], second.values[:, 0])
    source = drawn.source("train")
    for epoch, draw in ((0, 0), (1, 1), (4, 1), (5, 2)):
        assert_same(source.tokens(np.arange(20), epoch, torch.Generator()), part.tokens(np.arange(20), draw))
        assert np.array_equal(source.lengths(epoch), part.lengths(draw))
    feed = TokenFeed({"a": source}, steps=200, tokens_per_batch=64, seed=0)
    for step in (0, 40, 199):
        _, epoch, index = feed.place(step)
        assert int(part.lengths(epoch % 3)[index].sum()) <= 64
        assert_same(feed[step][1], part.tokens(index, epoch % 3))
    assert {feed.place(step)[1] for step in range(200)} > {0, 1, 2, 3}


def test_randomness_is_noticed() -> None:
    assert is_random(Everything(noise=True), list(range(3)))
    assert not is_random(Everything(), list(range(3)))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != cache_writer.LOCK}


@pytest.mark.parametrize("stop", [1, 4])
def test_a_writer_that_was_stopped_goes_on_to_the_same_bytes(stop, drawn, tmp_path, monkeypatch) -> None:
    write, done = cache_writer.write_shard, []

    def stopping(path, samples, marks):  # type: ignore[no-untyped-def]
        if len(done) == stop:
            path.with_name(path.name + ".part").write_bytes(b"half a shard")
            raise KeyboardInterrupt
        done.append(path)
        write(path, samples, marks)

    settings = {"tokenizer": Everything(noise=True), "draws": 3}
    with monkeypatch.context() as patch:
        patch.setattr(cache_writer, "write_shard", stopping)
        with pytest.raises(KeyboardInterrupt):
            written(tmp_path / "c", **settings)
    assert is_cache(tmp_path / "c")
    with pytest.raises(ConsilienceError, match=r"c is an unfinished token cache: run the same `consilience"):
        TokenCache.open(tmp_path / "c")
    with pytest.raises(ConsilienceError, match="c holds a token cache of other data"):
        written(tmp_path / "c", **settings, seed=1)
    before = {path: path.stat().st_mtime_ns for path in done}
    done[-1].write_bytes(done[-1].read_bytes()[:-20])  # as after a power cut
    assert written(tmp_path / "c", **settings).plan.id == drawn.plan.id
    assert contents(tmp_path / "c") == contents(drawn.folder)
    assert all(path.stat().st_mtime_ns == when for path, when in before.items() if path != done[-1])
    written(tmp_path / "c", **settings)  # a finished one is left as it is
    assert all(path.stat().st_mtime_ns == when for path, when in before.items() if path != done[-1])


def test_a_writer_that_was_stopped_before_its_first_shard_goes_on(cache, tmp_path, monkeypatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for name in ("_write_json", "pa.table", "_write_draw"):
        with monkeypatch.context() as patch:
            patch.setattr(f"consilience.core.cache_writer.{name}", stop)
            with pytest.raises(KeyboardInterrupt):
                written(tmp_path / "c")
    assert contents(written(tmp_path / "c").folder) == contents(cache.folder)


def truncate(folder: Path) -> None:
    path = folder / "train-0-00001.arrow"
    path.write_bytes(path.read_bytes()[:-100])


def remove(folder: Path) -> None:
    (folder / "validation-0-00000.arrow").unlink()


def half_a_manifest(folder: Path) -> None:
    path = folder / MANIFEST
    path.write_text(path.read_text()[:200])


def change(*names: str, to: object):  # type: ignore[no-untyped-def]
    def act(folder: Path) -> None:
        path = folder / MANIFEST
        found = inner = json.loads(path.read_text())
        for name in names[:-1]:
            inner = inner[name]
        inner[names[-1]] = to
        path.write_text(json.dumps(found))

    return act


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"train-0-00001\.arrow has [\d,]+ bytes instead of [\d,]+; write the token cache again"),
        (remove, r"validation-0-00000\.arrow is missing; write the token cache again"),
        (half_a_manifest, r"token-cache\.json is truncated or not JSON"),
        (change("format", to=99), r"token-cache\.json has format 99, this version of consilience reads format 1"),
        (change("tokenizer", "state", "noise", to=True), r"was changed after it was written \(another tokenizer\?\)"),
        (change("tokenizer", "class", to="nowhere:Nothing"), "cannot import 'nowhere'"),
        (change("parts", to=3), r"token-cache\.json is no token cache of this version"),
        (change("draws", to=2), "was changed after it was written"),
        (change("shards", to=[]), r"lists 0 of 150 records of draw 0 of train"),
    ],
)  # fmt: skip
def test_damage_is_named(damage, message, tmp_path) -> None:
    written(tmp_path)
    damage(tmp_path)
    with pytest.raises(ConsilienceError, match=message):
        TokenCache.open(tmp_path)


def test_a_foreign_or_scrambled_shard_is_named(cache, tmp_path) -> None:
    own = written(tmp_path / "own", data={"fingerprint": "xyz"})
    name = own.shards[0]["file"]
    (tmp_path / "own" / name).write_bytes((cache.folder / name).read_bytes())
    with pytest.raises(ConsilienceError, match=f"{name} belongs to another token cache"):
        TokenCache.open(tmp_path / "own").part("train").lengths(0)
    (tmp_path / "own" / name).write_bytes(os.urandom(own.shards[0]["bytes"]))
    with pytest.raises(ConsilienceError, match=f"{name} is damaged or missing"):
        TokenCache.open(tmp_path / "own").part("train").lengths(0)


def test_folders_that_cannot_be_written_to(tmp_path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConsilienceError, match="full is not empty: choose another --out"):
        written(tmp_path / "full")
    (tmp_path / "busy").mkdir()
    with (
        FileLock(tmp_path / "busy" / cache_writer.LOCK),
        pytest.raises(ConsilienceError, match="another process is writing"),
    ):
        written(tmp_path / "busy")
    with pytest.raises(ConsilienceError, match=r"nothing is no token cache: it holds no token-cache\.json"):
        TokenCache.open(tmp_path / "nothing")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_open_shards_hold_no_file_open(tmp_path) -> None:
    part = written(tmp_path, shard_bytes=1).part("train")
    part.lengths(0)  # maps what pyarrow itself opens once
    before = len(list(Path("/proc/self/fd").iterdir()))
    again = TokenCache.open(tmp_path).part("train")
    again.lengths(0)
    assert len(again.shards[0]) > 15 and len(list(Path("/proc/self/fd").iterdir())) == before
