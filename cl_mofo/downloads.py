"""What a checkpoint, downloaded or given as a folder, may name: files of its own and no others."""

from __future__ import annotations

import json
from pathlib import PurePosixPath, PureWindowsPath

from cl_mofo.errors import UserError
from cl_mofo.untrusted import MIB, distinct, read_bytes, shortened

MOST_BYTES = 64 * MIB


def check_index(path: str, name: str, revision: str | None) -> None:
    """Refuse a checkpoint in several files whose index names a file outside of it.

    The hub's client refuses such names where it downloads; what lies in a folder or in its cache,
    transformers takes as it is.

    Args:
        path: what the user calls the checkpoint.
        name: its folder, or its name on the hub.
        revision: of the hub's.

    Raises:
        UserError: the index is none, or names something else than files of the checkpoint.
    """
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, cached_file

    try:
        file = cached_file(
            name,
            SAFE_WEIGHTS_INDEX_NAME,
            revision=revision,
            local_files_only=True,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):
        return  # there is no such checkpoint here, which loading it says better
    if file is None:
        return
    where = f"model '{path}': {SAFE_WEIGHTS_INDEX_NAME}"
    try:
        index = json.loads(read_bytes(file, MOST_BYTES), object_pairs_hook=distinct)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{where} cannot be read: {error}") from error
    parts = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(parts, dict) or not parts:
        raise UserError(f'{where} has no "weight_map" from tensors to files')
    for part in parts.values():
        if not isinstance(part, str) or not _inside(part):
            raise UserError(
                f"{where} names {shortened(repr(part))}, which is no file of the checkpoint. "
                f"Download it anew, from where you trust"
            )


def _inside(name: str) -> bool:
    return name.isprintable() and not any(
        path.is_absolute() or path.anchor or ".." in path.parts or not path.name
        for path in (PurePosixPath(name), PureWindowsPath(name))
    )
