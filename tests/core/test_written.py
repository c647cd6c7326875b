"""Options that came later are written where they say something, so that older descriptions stay as they were."""

import json
from dataclasses import dataclass, field

import numpy as np

from consilience.core.model import FoundationModel
from consilience.core.objectives import Denoising
from consilience.core.written import LATE, written
from consilience.tokenizers.point_records import PointCloud
from consilience.tokenizers.points import PointTokenizer


@dataclass(frozen=True, kw_only=True)
class Options:
    """Two options, one of them late."""

    size: int = 3
    shape: str = field(default="round", metadata=LATE)


def test_late_options_are_written_where_they_say_something():
    assert written(Options()) == {"size": 3}
    assert written(Options(shape="square")) == {"size": 3, "shape": "square"}


def clouds() -> list[PointCloud]:
    rng = np.random.default_rng(0)
    return [PointCloud(rng.normal(size=(5, 3)), np.array(list("CCHHO"))) for _ in range(4)]


def test_states_from_before_stay_what_they_were():
    """Studies key their runs by these states: another key would train everything again."""
    assert set(PointTokenizer.fit(clouds()).state()["options"]) == {
        "tokens", "n_patches", "patch_size", "order", "slots", "types", "features", "position", "align",
        "augment", "max_points", "periods", "pairwise_bias",
    }  # fmt: skip
    state = json.loads(json.dumps(PointTokenizer.fit(clouds(), geometry="invariant").state()))
    assert PointTokenizer.from_state(state).spec.invariant


def test_a_saved_denoiser_keeps_its_level(tools, tmp_path):
    for objective, kept in ((Denoising(), {}), (Denoising(noise=0.1), {"noise": 0.1})):
        tokenizer = PointTokenizer.fit(clouds())
        folder = FoundationModel(tools.tiny, {"points": tokenizer}, objective).save(
            tmp_path / f"m{len(kept)}"
        )
        assert json.loads((folder / "config.json").read_text())["objective"]["options"] == kept
        assert FoundationModel.load(folder).objective == objective
