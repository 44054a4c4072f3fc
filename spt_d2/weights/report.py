"""What became of every entry of a checkpoint, as a compact table."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from spt_d2.weights.layouts import LAYOUTS, Layout

ACTIONS = ("copied", "resized", "added", "new", "dropped")
_BLOCK = re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.(.*)$")
# Buffers that others store and this project computes.
COMPUTED = ("relative_position_index", "relative_coords_table", "attn_mask")
# Parts of a block that get a line of their own.
_PARTS = re.compile(r"(?:attn\.)?(gate|pos_conv|light|relative_position_bias_table)")


@dataclass(frozen=True)
class Entry:
    """
    Attributes:
        name: in this project, without the backbone's prefix; outside of the backbone the whole name.
        action: one of :data:`ACTIONS`.
        parameters: its number of elements; 0 for what is no parameter.
        note: how, or why.
        loud: whether the pretrained function does not survive it.
    """

    name: str
    action: str
    parameters: int
    note: str = ""
    loud: bool = False


@dataclass(frozen=True)
class _Row:
    action: str
    part: str
    note: str
    loud: bool
    entries: int
    parameters: int


@dataclass
class WeightReport:
    """
    Attributes:
        layout: of the checkpoint.
        prefix: of the backbone in the model.
        entries: of the checkpoint's backbone and of the model's, and of the other parts as far as they are known.
    """

    layout: Layout
    prefix: str
    entries: list[Entry] = field(default_factory=list)

    def add(self, name: str, action: str, parameters: int, note: str = "", loud: bool = False) -> None:
        """Record what became of an entry; see :class:`Entry`."""
        self.entries.append(Entry(name, action, parameters, note, loud))

    def names(self, *actions: str) -> list[str]:
        """Names of the entries with one of these actions."""
        return [entry.name for entry in self.entries if entry.action in actions]

    def warnings(self) -> list[str]:
        """One line for each group of entries that changes the pretrained function."""
        return [f"{row.action} {row.part} ({_count(row)}): {row.note}" for row in self._rows() if row.loud]

    def table(self) -> str:
        """The title, then one line for each group of entries; "!" marks what changes the pretrained function."""
        where = self.prefix.removesuffix(".") or "the backbone"
        title = f"{LAYOUTS[self.layout.name]} ({self.layout.name!r} layout) into {where}"
        header = ("", "what", "part", "entries", "parameters", "how")
        cells = [header]
        for row in self._rows():
            parameters = f"{row.parameters:,}" if row.parameters else "-"
            cells.append(("!" * row.loud, row.action, row.part, f"{row.entries}", parameters, row.note))
        widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
        lines = []
        for line in cells:
            padded = [c.rjust(w) if i in (3, 4) else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths))]
            lines.append("  ".join(padded).rstrip())
        lines.insert(1, "-" * max(map(len, lines)))
        return "\n".join([title, *lines])

    def _rows(self) -> list[_Row]:
        groups: dict[tuple[str, str, str, bool], list[Entry]] = {}
        for entry in self.entries:
            part, _ = _part(entry)
            groups.setdefault((entry.action, part, entry.note, entry.loud), []).append(entry)
        rows = []
        for (action, part, note, loud), entries in groups.items():
            numbers = {number for entry in entries if (number := _part(entry)[1]) is not None}
            parameters = sum(entry.parameters for entry in entries)
            rows.append(_Row(action, part.replace("#", _ranges(numbers)), note, loud, len(entries), parameters))
        return sorted(rows, key=lambda row: ACTIONS.index(row.action))


def _part(entry: Entry) -> tuple[str, int | None]:
    """The line an entry belongs to, with # for a number that lines have in common, and that number."""
    block = _BLOCK.match(entry.name)
    if block:
        if entry.name.endswith(COMPUTED):
            return "tables of positions and masks", None
        own = _PARTS.match(block[3]) if entry.action not in ("copied", "added") else None
        return f"layers.{block[1]}.blocks.#{f' {own[1]}' if own else ''}", int(block[2])
    merging = re.match(r"layers\.(\d+)\.downsample\.", entry.name)
    if merging:
        return "layers.#.downsample", int(merging[1])
    norm = re.match(r"norm(\d+)\.", entry.name)
    if norm:
        return "norm#", int(norm[1])
    first, _, rest = entry.name.partition(".")
    if first == "backbone":
        # FPN's layers are numbered, and lie beside the backbone proper.
        return f"backbone.{re.sub(r'[0-9]+$', '*', rest.partition('.')[0])}", None
    return first, None


def _ranges(numbers: Iterable[int]) -> str:
    """``{0, 1, 2, 5}`` as "0-2,5"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def _count(row: _Row) -> str:
    entries = "1 entry" if row.entries == 1 else f"{row.entries} entries"
    return f"{entries}, {row.parameters:,} parameters"
