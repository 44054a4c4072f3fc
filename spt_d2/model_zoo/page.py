"""MODEL_ZOO.md and the tables of projects/SPT/README.md as text, from counts, the paper's numbers and records."""

import re
from collections.abc import Iterable, Mapping, Sequence

from spt_d2.model_zoo.paper import Row, Table
from spt_d2.model_zoo.records import METRICS, Record
from spt_d2.model_zoo.variants import (
    DETECTORS,
    EXTRA_BLOCKS,
    IMAGE_SIZE,
    KEEP_RATIO,
    READINGS,
    SIZES,
    VARIANTS,
    Count,
    Variant,
    config_costs,
    config_parameters,
    count,
    detector_parameters,
)

COMMAND = "python tools/make_model_zoo.py"
_RATIOS = " and ".join(f"{ratio:g} in stage {stage}" for stage, ratio in KEEP_RATIO.items())

_HEAD = f"""# Model zoo

Made by `{COMMAND}` from the code, [the paper's numbers](projects/SPT/paper_results.json) and
[results files](results/README.md); nothing here is typed. `{COMMAND} --check` fails where it is stale.

## How to read it

* **Counted** columns come from the code, without weights. MACs are those of the backbone, without its pyramid, at
  {IMAGE_SIZE[0]} x {IMAGE_SIZE[1]} pixels; a multiply-add counts once. [How](spt_d2/analysis/macs.py); for any config:
  `python tools/analyze_model.py --config-file FILE --tasks macs`.
* *Keep 0.23* is {_RATIOS}, what the paper reports for BDD100K (Table 6).
  *Executed* MACs include the empty slots of containers, *useful* ones do not.
* *Paper* columns, in italics, are the paper's own numbers, not measured here. Its FLOPs are multiply-adds too. They
  agree with the count for Swin; for SPT no reading below gives them all at the keep ratios that the paper reports: see
  [where it contradicts itself](projects/SPT/README.md#where-the-paper-contradicts-itself).
* **Measured** columns come from results files: the mean over seeds ± its standard error. An empty cell was not
  measured.

## Backbones

Rows of a size have the same width, and SPT selects in stages 3 and 4. *Vs Swin* compares executed MACs at keep 0.23
with dense Swin of the published depth, *vs twin* with dense Swin of equal depth. Which model the paper's FLOPs are of
is not known: they stand beside each reading.
"""


def zoo_page(paper: Mapping[str, Table], records: Sequence[Record]) -> str:
    """
    The text of MODEL_ZOO.md.

    Args:
        paper: of :func:`spt_d2.model_zoo.paper.read_paper`.
        records: of :func:`spt_d2.model_zoo.records.read_records`.
    """
    parts = [_HEAD]
    for size in SIZES:
        parts += [f"### {size}\n", _backbone_table(size, paper)]
    parts += [
        "## Detectors\n",
        "Parameters in millions, with 80 classes. Detectron2's Cascade Mask R-CNN has one mask head and one regression "
        "for all\nclasses; the one that Swin published has three mask heads, and a regression for each class.\n",
        _detector_table(paper),
        "## Results\n",
        "Every config that a row of the paper calls for. Rows without one are in the\n"
        "[tables of the project](projects/SPT/README.md) alone.\n",
        _result_table(paper, records),
        "## Further results\n",
        "Comparisons of variants on small data, with paired seeds, are in "
        "[docs/experiments.md](docs/experiments.md).\n",
        _further_table(paper, records),
    ]
    return "\n".join(parts)


def insert_tables(text: str, paper: Mapping[str, Table], records: Sequence[Record]) -> str:
    """
    Put each table of the paper between its markers, ``<!-- table1 -->`` and ``<!-- /table1 -->``.

    Raises:
        ValueError: a table has no markers, or not exactly one pair.
    """
    for name, table in paper.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise ValueError(f"insert_tables(text=) expects one pair of markers <!-- {name} -->, <!-- /{name} -->.")
        block = paper_table(table, records)
        text = pattern.sub(lambda match: f"{match[1]}{block}{match[2]}", text)  # noqa: B023  called at once
    return text


def paper_table(table: Table, records: Sequence[Record]) -> str:
    """A table of the paper with our count, config and status beside each row."""
    costs = [_cost(row, table.image_size) for row in table.rows]
    counted = any(costs)
    size = "" if table.image_size == IMAGE_SIZE else " at {} x {}".format(*table.image_size)
    header = ["row", *(f"*{title}*" for title in table.columns)]
    header += [f"our MACs{size}, G", "our parameters, M"] if counted else []
    digits = [max(_decimals(row.values[i]) for row in table.rows) for i in range(len(table.columns))]
    rows = []
    for row, cost in zip(table.rows, costs):
        cells = [row.model, *(_italic(value, places) for value, places in zip(row.values, digits))]
        if counted:
            cells += [cost, "" if row.config is None else _million(config_parameters(row.config))]
        rows.append([*cells, _config_link(row.config, "../../"), _status(row, table.metrics, records)])
    return _markdown([*header, "config", "status"], rows)


def _cost(row: Row, image_size: tuple[int, int]) -> str:
    """Multiply-adds that we count for a row; empty where the images decide and the paper does not say what they do."""
    if row.variant is not None:
        return _giga(count(row.variant, row.keep_ratio, image_size).kept.executed)
    costs = None if row.config is None else config_costs(row.config, image_size)
    if costs is None:
        return ""
    inference, training = costs
    return _giga(inference) if inference == training else f"{_giga(inference)} (training {_giga(training)})"


def _status(row: Row, metrics: Sequence[str], records: Sequence[Record]) -> str:
    """Whether a row was measured and, of what its columns and the selection tell, what was found."""
    if row.config is None:
        return "baseline, no config here"
    said = []
    for record in _matching(row, records):
        names = dict.fromkeys([*metrics, *_SELECTION_METRICS])
        found = "; ".join(f"{METRICS[name][0]} {record.value(name)}" for name in names if record.value(name))
        said.append(f"[{found or 'other figures'}](../../results/{record.path.name})")
    return f"**measured**: {' and '.join(said)}" if said else "ready to run"


def _matching(row: Row, records: Sequence[Record]) -> list[Record]:
    """Records of the row's config as it is: with other keys it would be another experiment."""
    if row.config is None:
        return []
    return [record for record in records if record.is_of(row.config) and record.data["test"] == row.data]


def _backbone_table(size: str, paper: Mapping[str, Table]) -> str:
    published, twin = (count(variant) for variant in VARIANTS.values() if variant.size == size and not variant.selects)
    swin_executed, twin_executed = published.kept.executed, twin.kept.executed
    depth = sum(SIZES[size].depths)
    rows = [
        [*_counted(f"Swin-{size}, {depth} blocks", published), "", "", *_paper_flops(f"Swin-{size}", paper)],
        [
            *_counted(f"Swin-{size}, {depth + EXTRA_BLOCKS} blocks", twin),
            _percent(twin_executed / swin_executed - 1),
            *[""] * 4,
        ],
    ]
    for title, extra, options in READINGS:
        found = count(Variant(size, extra, options=options))
        executed = found.kept.executed
        against = [executed / swin_executed - 1, executed / (twin_executed if extra else swin_executed) - 1]
        label = f"SPT-{size}, {depth + extra} blocks: {title}"
        rows.append([*_counted(label, found), *map(_percent, against), *_paper_flops(f"SPT-{size}", paper)])
    header = [
        "backbone", "parameters, M", "executed, keep 0.23, G", "useful, keep 0.23, G", "executed, keep 0, G",
        "executed, keep 1, G", "vs Swin", "vs twin", "*paper: COCO, G*", "*BDD100K, G*", "*BDD-S, G*",
    ]  # fmt: skip
    return _markdown(header, rows)


def _counted(label: str, found: Count) -> list[str]:
    macs = (found.kept.executed, found.kept.useful, found.none.executed, found.full.executed)
    return [label, _million(found.backbone), *map(_giga, macs)]


def _paper_flops(model: str, paper: Mapping[str, Table]) -> list[str]:
    cells = []
    for name in ("table1", "table2", "table3"):
        table = paper[name]
        place = table.columns.index("backbone FLOPs, G")
        cells.append(_italic(next((row.values[place] for row in table.rows if row.model == model), None)))
    return cells


# What the paper calls them, where it has them.
_PAPER_NAMES = {
    "swin_t": "Swin-T", "swin_s": "Swin-S", "swin_b": "Swin-B", "spt_t": "SPT-T", "spt_s": "SPT-S", "spt_b": "SPT-B",
    "spt_t12": "SPT-T/12",
}  # fmt: skip


def _detector_table(paper: Mapping[str, Table]) -> str:
    rows = [
        [
            f"`{name}`",
            "-".join(map(str, variant.depths)),
            *(_million(detector_parameters(variant, detector)) for detector in DETECTORS),
            *(_italic(_paper_parameters(_PAPER_NAMES.get(name), cascade, paper)) for cascade in (False, True)),
        ]
        for name, variant in VARIANTS.items()
    ]
    return _markdown(["backbone", "blocks", *DETECTORS, "*paper: Mask R-CNN*", "*paper: Cascade Mask R-CNN*"], rows)


def _paper_parameters(model: str | None, cascade: bool, paper: Mapping[str, Table]) -> float | None:
    """In millions; None where the paper has no such detector."""
    for table in paper.values():
        for row in table.rows:
            if row.model == model and row.is_cascade == cascade and "parameters, M" in table.columns:
                return row.values[table.columns.index("parameters, M")]
    return None


_SELECTION_METRICS = ("keep_ratio", "retention", "density", "executed_macs_g")
_RESULT_METRICS = ("box_ap", "mask_ap", "map", *_SELECTION_METRICS)


def _result_table(paper: Mapping[str, Table], records: Sequence[Record]) -> str:
    """One row per config and data set that the paper has a row for, and one for each record of it."""
    rows: dict[tuple[str, str], tuple[Row, list[str]]] = {}
    for table in paper.values():
        for row in table.rows:
            if row.config is not None:
                accuracies = [
                    f"{title} {value:g}"
                    for title, value in zip(table.columns, row.values)
                    if title in ("AP", "mask AP", "mAP") and value is not None
                ]
                said = rows.setdefault((row.config, row.data), (row, []))[1]
                said += [f"{text} ({table.reference})" for text in accuracies]
    lines = []
    for row, said in rows.values():
        first = [_config_link(row.config, ""), row.data, _italic_text("; ".join(said))]
        found = _matching(row, records)
        if not found:
            lines.append([*first, *[""] * (len(_RESULT_METRICS) + 1)])
        lines += [[*first, *_measured(record)] for record in found]
    titles = [METRICS[name][0] for name in _RESULT_METRICS]
    return _markdown(["config", "data", "*paper*", *titles, "measured on; seeds; commit; date"], lines)


def _further_table(paper: Mapping[str, Table], records: Sequence[Record]) -> str:
    """Records that no row of the paper calls for."""
    rows = [row for table in paper.values() for row in table.rows]
    further = [record for record in records if not any(record in _matching(row, records) for row in rows)]
    if not further:
        return "No other config has a results file.\n"
    titles = [METRICS[name][0] for name in _RESULT_METRICS]
    lines = [[_config_link(record.config, ""), record.data["test"], *_measured(record)] for record in further]
    return _markdown(["config", "data", *titles, "measured on; seeds; commit; date"], lines)


def _measured(record: Record) -> list[str]:
    changed = f"; {' '.join(record.overrides)}" if record.overrides else ""
    source = f"[{record.provenance}](results/{record.path.name}){changed}"
    return [*(record.value(name) for name in _RESULT_METRICS), source]


def _config_link(config: str | None, root: str) -> str:
    if config is None:
        return ""
    folder = "projects/SPT/configs" if config.endswith(".py") else "configs"
    return f"[{config.rsplit('.', 1)[0]}]({root}{folder}/{config})"


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _decimals(value: float | None) -> int:
    """Digits after the point, as the paper wrote it."""
    return len(f"{value:g}".partition(".")[2]) if value is not None else 0


def _italic(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"*{value:.{digits}f}*"


def _italic_text(text: str) -> str:
    return f"*{text}*" if text else ""


def _giga(value: float) -> str:
    return f"{value / 1e9:.1f}"


def _million(value: int) -> str:
    return f"{value / 1e6:.1f}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:+.1f} %"
