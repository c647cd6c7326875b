"""Pieces of the page. Everything that comes from outside is escaped here."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure


def table(
    head: Sequence[str], body: Iterable[str], *, style: str = "", caption: str = "", label: str = ""
) -> str:
    """A table of ready rows; `head` holds ready cells' contents, `label` says what the table is to a screen reader."""
    cells = "".join(f"<th>{cell}</th>" for cell in head)
    kind = f" class='{style}'" if style else ""
    name = f" aria-label='{escape(label)}'" if label else ""
    return (
        f"<div class='scroll'><table{kind}{name}><thead><tr>{cells}</tr></thead><tbody>{''.join(body)}</tbody>"
        f"</table></div>{paragraph(caption, 'caption')}"
    )


def row(name: str, cells: Iterable[str], *, style: str = "") -> str:
    """A row of ready cells (with their <td>)."""
    kind = f" class='{escape(style)}'" if style else ""
    return f"<tr{kind}><th>{escape(name)}</th>{''.join(cells)}</tr>"


def cell(text: str, small: Sequence[str] = (), style: str = "") -> str:
    """A cell with small print below."""
    kind = f" class='{style}'" if style else ""
    below = "".join(f"<small>{escape(part)}</small>" for part in small if part)
    return f"<td{kind}>{escape(text)}{below}</td>"


def paragraph(text: str, style: str = "") -> str:
    """A paragraph of plain text; nothing without text."""
    kind = f" class='{style}'" if style else ""
    return f"<p{kind}>{escape(text)}</p>" if text else ""


def picture(figure: Figure, folder: Path, name: str, caption: str, alt: str) -> str:
    """Save a figure as PNG and PDF, and embed the PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    figure.draw_without_rendering()
    figure.set_layout_engine(None)  # it is laid out: doing so again takes longer than drawing
    figure.savefig(buffer, format="png", dpi=140)
    (folder / f"{name}.png").write_bytes(buffer.getvalue())
    figure.savefig(folder / f"{name}.pdf")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return (
        f"<figure><img alt='{escape(alt)}' src='data:image/png;base64,{encoded}'>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
