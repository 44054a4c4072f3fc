"""The paper's own numbers, table by table, as a data file has them."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spt_d2.model_zoo.variants import IMAGE_SIZE, KEEP_RATIO, VARIANTS, Variant

# Columns of the data file that results files (records.METRICS) have too.
_METRICS = {
    **{f"AP{kind}": f"box_ap{kind}" for kind in ("", "50", "75", *"sml")},
    **{f"mask_AP{kind}": f"mask_ap{kind}" for kind in ("", "50", "75", *"sml")},
    "mAP": "map",
    "keep": "keep_ratio",
    **{f"keep{stage}": f"keep_ratio_stage{stage}" for stage in range(1, 5)},
    "retention": "retention",
    "density": "density",
    "backbone_g": "executed_macs_g",
}


@dataclass(frozen=True)
class Row:
    """
    A row of the paper.

    Attributes:
        model: as the paper calls it, or what was varied.
        values: one for each column of the table; None where the paper gives none.
        variant: the backbone that is counted for it, of those that keep what the images call for; None where that of
            the config is counted, if it can be.
        keep_ratio: ``{stage: share}`` at which a variant is counted.
        config: below ``configs/``; None for baselines that have none here.
        data: name of the data set of evaluation.
    """

    model: str
    values: tuple[float | None, ...]
    variant: Variant | None
    keep_ratio: Mapping[int, float]
    config: str | None
    data: str

    @property
    def is_cascade(self) -> bool:
        """Whether its detector is Cascade Mask R-CNN."""
        return self.config is not None and "/cascade_" in self.config


@dataclass(frozen=True)
class Table:
    """
    A table, or a figure or section with numbers.

    Attributes:
        reference: as one cites it.
        task: what it is about.
        columns: titles.
        rows: in the paper's order.
        metrics: names of what a results file has of these columns, in their order.
        image_size: height and width in pixels at which its rows are counted.
    """

    reference: str
    task: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    metrics: tuple[str, ...] = ()
    image_size: tuple[int, int] = IMAGE_SIZE


def read_paper(path: str | os.PathLike[str]) -> dict[str, Table]:
    """
    The tables of the data file, by their names there.

    Raises:
        ValueError: a row with more or fewer values than its table has columns.
    """
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    return {name: _table(table) for name, table in content["tables"].items()}


def _table(table: Mapping[str, Any]) -> Table:
    titles = tuple(title for _, title in table["columns"])
    for row in table["rows"]:
        if len(row["values"]) != len(titles):
            raise ValueError(
                f"{table['reference']} expects {len(titles)} values in the row of {row['model']!r}. "
                f"Got {len(row['values'])}."
            )
    rows = tuple(_row(row, table["data"]) for row in table["rows"])
    height, width = table.get("image_size", IMAGE_SIZE)
    metrics = tuple(_METRICS[key] for key, _ in table["columns"] if key in _METRICS)
    return Table(table["reference"], table["task"], titles, rows, metrics, (height, width))


def _row(row: Mapping[str, Any], data: str) -> Row:
    variant = VARIANTS[row["variant"]] if row["variant"] else None
    if variant is not None and "options" in row:
        # Tuples, for a variant is a key of what was counted.
        options = [(key, tuple(value) if isinstance(value, list) else value) for key, value in row["options"].items()]
        variant = replace(variant, options=tuple(options))
    ratios = {int(stage): ratio for stage, ratio in row["keep_ratio"].items()} if "keep_ratio" in row else KEEP_RATIO
    return Row(row["model"], tuple(row["values"]), variant, ratios, row["config"], row.get("data", data))
