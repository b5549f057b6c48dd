"""Writes `docs/demo.svg`, the screen of `make demo`:
`python -m recipes.demo_picture`."""

import re
import runpy
from io import StringIO
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).parent.parent


def without_fonts(picture: str) -> str:
    """An SVG that fetches nothing: the reader's own fixed-width font is used."""
    picture = re.sub(r"@font-face\s*\{[^}]*\}", "", picture)
    return re.sub(r"font-family:\s*Fira Code[^;]*;", "font-family: monospace;", picture)


def main() -> None:
    """Run the demo, and keep its last screen."""
    console = Console(record=True, width=132, file=StringIO())
    runpy.run_path(str(ROOT / "examples" / "demo.py"))["main"](console)
    picture = console.export_svg(title="make demo", unique_id="demo")
    (ROOT / "docs" / "demo.svg").write_text(without_fonts(picture))


if __name__ == "__main__":
    main()
