"""Models that come with the package: folders beside this file, as `consilience train` writes them."""

from pathlib import Path

FOLDER = Path(__file__).parent
RESULTS = Path("runs")
"""Where what is made of a shipped model goes, in the working directory: nobody writes into an installed package."""


def shipped() -> dict[str, Path]:
    """Name -> folder."""
    return {path.parent.name: path.parent for path in sorted(FOLDER.glob("*/config.json"))}


def model_folder(model: "str | Path") -> Path:
    """The folder of a model: the one that is named, or of a shipped model where there is no such folder."""
    folder = Path(model).expanduser()
    return folder if folder.is_dir() else shipped().get(str(model), folder)


def results_folder(model: "str | Path") -> Path:
    """Where results on a model are kept: its own folder; of a shipped one, runs/NAME."""
    folder = model_folder(model)
    return RESULTS / folder.name if folder.parent == FOLDER else folder
