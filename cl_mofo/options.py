"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def examples(*commands: str) -> str:
    """Return what stands below a command's help."""
    return "\n\n".join(["Examples:", *commands])


RecipeArgument = Annotated[
    str | None, typer.Argument(help="A built-in recipe (cl-mofo list runs) or a YAML file.")
]
ModelOption = Annotated[
    str | None, typer.Option(help="A model folder, a hub name, or 'tiny' (embedded).")
]
DataOption = Annotated[str | None, typer.Option(help="The folder of TRACE's tasks.")]
ImportOption = Annotated[
    list[Path] | None,
    typer.Option("--import", metavar="FILE.py", help="Python file with tasks or strategies."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a recipe key, e.g. optimizer.lr=5e-4."),
]
