"""Writes an epoch's negative captions to a Parquet file, for inspection."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mm_cca.negatives.epoch_plan import EpochPlan
from mm_cca.negatives.settings import KINDS
from mm_cca.negatives.vectors import blocks

ROWS = 1 << 16


def write_plan(path: Path, plan: EpochPlan, source_rows: Sequence[int]) -> None:
    """Write m rows for each image: image, prompt, negative, kind, similarity.

    Args:
        path: the file.
        plan: of n images.
        source_rows: [n] row of each image in the data.

    Raises:
        ValueError: ``source_rows`` are not n.
    """
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema(
        [
            ("image", pa.int64()),
            ("prompt", pa.string()),
            ("negative", pa.string()),
            ("kind", pa.string()),
            ("similarity", pa.float32()),
        ]
    )
    n, m = plan.kinds.shape
    if len(source_rows) != n:
        raise ValueError(f"{n} planned images, {len(source_rows)} rows")
    places = np.arange(n)
    with parquet.ParquetWriter(path, schema) as file:
        for part in blocks(n, max(1, ROWS // m)):
            similarity = plan.similarity[part].ravel()
            columns = [
                pa.array(np.repeat(np.asarray(source_rows[part], dtype=np.int64), m)),
                pa.array([text for text in plan.captions[part] for _ in range(m)], pa.string()),
                pa.array(plan.negatives(places[part]).ravel().tolist(), pa.string()),
                pa.array([KINDS[k] for k in plan.kinds[part].ravel().tolist()], pa.string()),
                pa.array(similarity, mask=np.isnan(similarity)),
            ]
            file.write_table(pa.Table.from_arrays(columns, schema=schema))
