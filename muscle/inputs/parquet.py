"""Parquet files column by column: a million rows are never Python objects all at once."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from muscle.copies import fetch
from muscle.errors import UserError
from muscle.tables import reason_line

# Small enough that no chunk of texts comes near the 2 GB that a string array can hold.
_BATCH = 1 << 16


class ParquetColumns:
    """The columns of one file, each read when it is asked for.

    Raises (also later, when a column is read):
        UserError: no such file, or it is not a whole Parquet file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        with self._open() as file:
            self.schema: pa.Schema = file.schema_arrow
            self.n: int = file.metadata.num_rows
        names = self.schema.names
        double = next((name for name in names if names.count(name) > 1), None)
        if double is not None:
            raise UserError(f"{path}: two columns are called {double!r}")

    def read(self, name: str) -> pa.ChunkedArray:
        """[n] a column as it is in the file; dictionary-encoded ones decoded."""
        kind = self.schema.field(name).type
        with self._open() as file:
            batches = file.iter_batches(_BATCH, columns=[name])
            chunks = [batch.column(0) for batch in batches]
        column = pa.chunked_array(chunks, kind)
        return column.cast(kind.value_type) if pa.types.is_dictionary(kind) else column

    @contextmanager
    def _open(self) -> Iterator[pq.ParquetFile]:
        try:
            # Of a store's file a copy: each column is read by itself.
            with open(fetch(self.path), "rb") as file:
                yield pq.ParquetFile(file)
        except FileNotFoundError:
            raise UserError(f"{self.path}: there is no such file") from None
        except (pa.ArrowException, OSError) as error:
            # Arrow reports damaged pages as OSErrors without a number.
            broken = not (isinstance(error, OSError) and error.errno)
            what = "is not a whole Parquet file" if broken else "can't be read"
            raise UserError(f"{self.path} {what}: {reason_line(error)}") from error


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds texts, with offsets of either width."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
