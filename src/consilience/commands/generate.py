"""Generate new records with a trained model."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilience.commands.console import bar, say
from consilience.commands.files import replacing, try_writing
from consilience.commands.models import open_model, science_of
from consilience.commands.parser import CommandParser
from consilience.core.errors import ConsilienceError

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from consilience.core.model import FoundationModel


def generate(
    model: "FoundationModel | str | Path",
    n: int,
    *,
    out: str | Path | None = None,
    domain: str | None = None,
    seed: int = 0,
    temperature: float | None = None,
    steps: int | None = None,
    batch_size: int = 256,
    device: str = "auto",
    progress: bool = False,
) -> Any:
    """Generate new records.

    Args:
        model: the folder of a run; in Python also a loaded model.
        n: how many.
        out: where to write; the ending chooses the format (.smi, .h5ad, .fits, .xyz ...).
        domain: the science; needed only where the model knows several.
        seed: of all randomness; the same seed gives the same records.
        temperature: below 1 sharpens, 0 takes the likeliest; 1 where left out.
        steps: of samplers that can choose it (unmasking, transport along the flow).
        batch_size: records at a time; part of what a seed means.
        device: cpu, cuda, or auto: a GPU when there is one.
        progress: show a bar with the rate and the time left.

    Returns:
        The records, in the type of their science.
    """
    if n < 1:
        raise ConsilienceError(f"n must be at least 1, not {n}")
    if batch_size < 1:
        raise ConsilienceError(f"batch_size must be at least 1, not {batch_size}")
    if temperature is not None and temperature < 0:
        raise ConsilienceError(f"temperature must not be negative, not {temperature}")
    if steps is not None and steps < 1:
        raise ConsilienceError(f"steps must be at least 1, not {steps}")
    network, folder = open_model(model, device)
    target = None if out is None else Path(out).expanduser()
    science = None if target is None else science_of(network, folder, domain)
    name = network.domain_of(domain) if science is None else science.name
    if target is not None and science is not None:
        one = network.generate(1, domain=name, steps=1)
        try_writing(target, lambda path: science.write_records(one, path))
    options: dict[str, Any] = {"steps": steps} | ({} if temperature is None else {"temperature": temperature})
    records = _in_batches(network, n, name, seed, batch_size, progress, options)
    if target is not None and science is not None:
        with replacing(target) as part:
            science.write_records(records, part)
    return records


def new_parser() -> CommandParser:
    """The options of `consilience generate`."""
    parser = CommandParser("generate", generate, "MODEL --n N --out FILE [options]")
    parser.option("model", type=str, metavar="MODEL")
    parser.option("--n", type=int, default=100)
    parser.option("--out", type=str, required=True, metavar="FILE")
    parser.option("--domain", type=str | None)
    parser.option("--seed", type=int)
    parser.option("--temperature", type=float | None)
    parser.option("--steps", type=int | None)
    parser.option("--batch-size", type=int)
    parser.option("--device", type=str)
    return parser


def run(options: "Namespace") -> None:
    """`consilience generate`."""
    records = generate(**options.as_dict(), progress=True)
    say(f"{options.out}: {len(records)} generated records")


def _in_batches(
    model: "FoundationModel",
    n: int,
    domain: str,
    seed: int,
    batch_size: int,
    progress: bool,
    options: dict[str, Any],
) -> Any:
    """`model.generate` batch by batch with a bar; the first batch has the seed itself, later ones their own."""
    import numpy as np

    from consilience.core.batch import TokenBatch

    done = []
    with bar("records", shown=progress) as shown:
        task = shown.add_task("generating", total=n, note="")
        for place, first in enumerate(range(0, n, batch_size)):
            count = min(batch_size, n - first)
            own = int(np.random.SeedSequence([seed, place]).generate_state(1)[0]) if place else seed
            done.append(model.generate_tokens(count, domain=domain, seed=own, batch_size=count, **options))
            shown.update(task, advance=count)
    return model.tokenizers[domain].decode(TokenBatch.concatenate(done))
