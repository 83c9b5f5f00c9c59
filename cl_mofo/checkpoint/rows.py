"""The figures of the steps so far, as a file of a checkpoint."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cl_mofo.files import DamagedError
from cl_mofo.untrusted import open_regular


def written_rows(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return rows as parquet."""
    import pandas as pd

    file = io.BytesIO()
    pd.DataFrame(list(rows)).to_parquet(file, index=False)
    return file.getvalue()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a parquet file.

    Raises:
        DamagedError: it is none.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        # Without what pandas wrote beside the columns, which says nothing more and may be broken.
        with open_regular(path) as file:
            table = parquet.read_table(file).replace_schema_metadata(None)
        found = table.to_pandas().to_dict("records")
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DamagedError(f"{path.name} cannot be read ({error})") from error
    return [{str(key): value for key, value in row.items()} for row in found]
