"""Tables for terminals of different widths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from cl_mofo.report.text import break_name


class Fitting:
    """Renders as the first of several layouts that fits the terminal, else as the last.

    Args:
        layouts: each a list of tables, shown one below the other; the widest layout first.
    """

    def __init__(self, *layouts: Sequence[Table]) -> None:
        self.layouts = layouts

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        unbounded = options.update(width=10_000)
        for layout in self.layouts[:-1]:
            needed = max(Measurement.get(console, unbounded, table).maximum for table in layout)
            if needed <= options.max_width:
                break
        else:
            layout = self.layouts[-1]
        for i, table in enumerate(layout):
            if i:
                yield Text()
            yield table


def grid(
    head: Sequence[str], body: Iterable[Sequence[Text]], *, title: str = "", gap: int = 2
) -> Table:
    """Return a table of one column of labels and columns of figures.

    Args:
        head: the columns' names, broken into lines where they are long, the first left as it is.
        body: the rows. Nothing in them or in `head` is read as markup.
        title: stands above the table.
        gap: spaces between columns.
    """
    table = Table(
        title=Text(title) if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, gap - 1, 0, 0),  # the box itself puts one space between columns
    )
    names = [head[0], *map(break_name, head[1:])]
    height = max(name.count("\n") for name in names)
    for i, name in enumerate(names):
        header = Text("\n" * (height - name.count("\n")) + name)
        if i == 0:
            table.add_column(header, overflow="fold")
        else:
            table.add_column(header, justify="right", no_wrap=True)
    for row in body:
        table.add_row(*row)
    return table
