"""The result of a check: for a terminal, and for programs."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from spt_d2.data.coco_check.draft import NUM_EXAMPLES, Problem
from spt_d2.data.coco_stats import RATIO_EDGES, stats_table

_BAR = 30  # characters of the longest bar of the histogram


@dataclass(frozen=True)
class CheckReport:
    """
    What a check found.

    Attributes:
        images, annotations, categories: how many the json has.
        problems: errors first.
        clean: a copy without the faults, or None where none can be made.
        statistics: of that copy, :meth:`spt_d2.data.coco_stats.DatasetStats.summary` by boxes; None without a copy.
    """

    images: int
    annotations: int
    categories: int
    problems: tuple[Problem, ...]
    clean: dict[str, Any] | None
    statistics: dict[str, Any] | None

    @property
    def safe(self) -> bool:
        """Whether nothing was found at which training or evaluation would stop, or learn something else."""
        return not any(problem.error for problem in self.problems)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the clean copy, as json has it."""
        return {
            "safe": self.safe,
            "images": self.images,
            "annotations": self.annotations,
            "categories": self.categories,
            "problems": [
                {
                    "kind": problem.kind,
                    "severity": "error" if problem.error else "warning",
                    "count": problem.count,
                    "what": problem.what,
                    "cure": problem.cure or None,
                    "hint": problem.hint or None,
                    "examples": list(problem.examples),
                }
                for problem in self.problems
            ],
            "statistics": self.statistics,
        }

    def text(self, unseen: str = "") -> str:
        """
        The report, in lines.

        Args:
            unseen: what nothing has looked at and may hold more faults, in words; it qualifies a good verdict.
        """
        lines = [f"{self.images} images, {self.annotations} annotations, {self.categories} categories"]
        for error, title in (
            (True, "ERRORS: training or evaluation would stop, or learn something else than the json says"),
            (False, "WARNINGS: it runs, but perhaps not as meant"),
        ):
            problems = [problem for problem in self.problems if problem.error == error]
            if problems:
                lines += ["", title]
            for problem in problems:
                more = ("...",) if problem.count > NUM_EXAMPLES else ()
                lines.append(f"  {problem.kind:20s} {problem.count} {problem.what}")
                lines += [f"  {'':20s}   {example}" for example in (*problem.examples, *more)]
                lines += [f"  {'':20s} HINT: {problem.hint}"] if problem.hint else []
                lines.append(f"  {'':20s} --fix {problem.cure or 'cannot mend this'}")
        if self.statistics is not None:
            lines += ["", "STATISTICS, without what --fix leaves out", stats_table({"": self.statistics}), ""]
            lines += self._histogram(self.statistics["histogram"]["share"])
        safe = f"SAFE to train on{unseen and f', as far as looked at: not at {unseen}'}"
        lines += ["", safe if self.safe else "NOT SAFE to train on"]
        return "\n".join(lines)

    @staticmethod
    def _histogram(share: list[float]) -> list[str]:
        names = ["no object", *(f"{low:.0%} - {high:.0%}" for low, high in pairwise(RATIO_EDGES))]
        most = max(share) or 1.0
        return [
            "images by object-to-pixel ratio (union of boxes)",
            *(f"  {n:>12s} {100 * s:5.1f} % {'#' * round(_BAR * s / most)}".rstrip() for n, s in zip(names, share)),
        ]
