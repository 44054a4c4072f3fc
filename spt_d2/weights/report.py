"""What became of every entry of a checkpoint, as a compact table."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from spt_d2.weights.layouts import LAYOUTS, Layout

ACTIONS = ("copied", "resized", "added", "new", "dropped")
_BLOCK = re.compile(r"layers\.\d+\.blocks\.(?P<number>\d+)\.(?P<rest>.*)$")
_NUMBERED = re.compile(r"(?:layers\.|norm)(?P<number>\d+)(?:\.downsample)?\.")
# Buffers that others store and this project computes.
COMPUTED = ("relative_position_index", "relative_coords_table", "attn_mask")


@dataclass(frozen=True)
class Entry:
    """
    Attributes:
        name: in this project, without the backbone's prefix; outside of the backbone the whole name.
        action: one of :data:`ACTIONS`.
        parameters: its number of elements; 0 for what is no parameter.
        note: how, or why.
        loud: whether the pretrained function does not survive it, or the file seems to be that of another model.
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
        """One line for each group of entries that is loud."""
        return [f"{row.action} {row.part} ({_count(row)}): {row.note}" for row in self._rows() if row.loud]

    def table(self) -> str:
        """The title, then one line for each group of entries; "!" marks what is loud."""
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
            groups.setdefault((entry.action, _place(entry.name), entry.note, entry.loud), []).append(entry)
        rows = []
        for (action, place, note, loud), entries in groups.items():
            numbers = {number for entry in entries if (number := _number(entry.name)) is not None}
            part = place.replace("#", _ranges(numbers))
            leaves = dict.fromkeys(leaf for entry in entries if (leaf := _leaf(entry.name)))
            if 1 <= len(leaves) <= 2:
                # Not whole blocks, but the gates of some, or their tables.
                part += " " + ", ".join(leaves)
            rows.append(_Row(action, part, note, loud, len(entries), sum(entry.parameters for entry in entries)))
        return sorted(rows, key=lambda row: ACTIONS.index(row.action))


def _place(name: str) -> str:
    """The line that an entry belongs to, with # for a number that differs within it."""
    if name.endswith(COMPUTED):
        return "tables of positions and masks"
    first, *rest = name.split(".")
    if _BLOCK.match(name):
        return f"layers.{rest[0]}.blocks.#"
    if _NUMBERED.match(name):
        return "layers.#.downsample" if first == "layers" else "norm#"
    if first == "backbone" and rest:
        # FPN's layers are numbered, and lie beside the backbone proper.
        return f"backbone.{re.sub('[0-9]+$', '*', rest[0])}"
    return first


def _number(name: str) -> int | None:
    match = _BLOCK.match(name) or _NUMBERED.match(name)
    return int(match["number"]) if match and not name.endswith(COMPUTED) else None


def _leaf(name: str) -> str:
    """The part of a block, such as gate; empty outside of blocks."""
    match = _BLOCK.match(name)
    if match is None or name.endswith(COMPUTED):
        return ""
    first, _, rest = match["rest"].partition(".")
    return rest if rest.endswith("_table") else first


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
