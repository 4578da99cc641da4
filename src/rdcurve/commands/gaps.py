"""Read the tables of BDMC bounds that `rdcurve bdmc` wrote."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from rdcurve.files import FileError

__all__ = ["read_gaps"]

_COLUMNS = ["beta", "gap", "gap_se", "n_images"]


def read_gaps(path: Path) -> pd.DataFrame:
    """A table with the columns beta, gap and gap_se (nats), n_images; without rows where nothing could be simulated.

    Raises:
        FileError: missing, no table, or without these columns, or with something else than numbers in them.
    """
    try:
        return pd.read_csv(path)[_COLUMNS].astype(float)
    except (OSError, KeyError, ValueError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise FileError(f"{path}: not a readable table of BDMC points ({error})") from error
