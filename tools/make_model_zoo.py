#!/usr/bin/env python3
"""
Make MODEL_ZOO.md and the tables of projects/SPT/README.md from the code, the paper's numbers and results files.

    python tools/make_model_zoo.py             write them
    python tools/make_model_zoo.py --check     write nothing; exit code 1 where a page is stale
"""

import argparse
import sys
from pathlib import Path

import spt_d2  # noqa: F401  registers backbones and meta-architectures
from spt_d2.model_zoo.page import insert_tables, zoo_page
from spt_d2.model_zoo.paper import read_paper
from spt_d2.model_zoo.records import read_records

ROOT = Path(__file__).resolve().parents[1]
PAPER = Path("projects/SPT/paper_results.json")
PAGES = (Path("MODEL_ZOO.md"), Path("projects/SPT/README.md"))


def make_pages(root: Path, results: Path) -> dict[Path, str]:
    """The text of each page, by its path below ``root``."""
    paper, records = read_paper(root / PAPER), read_records(results)
    zoo, project = PAGES
    return {
        zoo: zoo_page(paper, records),
        project: insert_tables((root / project).read_text(encoding="utf-8"), paper, records),
    }


def main(argv: list[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, and fail where a page is stale")
    parser.add_argument("--results", metavar="DIR", help="results files; default: results in the repository")
    args = parser.parse_args(argv)
    stale = []
    for path, text in make_pages(ROOT, Path(args.results or ROOT / "results")).items():
        file = ROOT / path
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            stale.append(path)
            if not args.check:
                file.write_text(text, encoding="utf-8")
    for path in stale:
        print(f"{path} is stale; `python tools/make_model_zoo.py` makes it anew" if args.check else f"{path} written")
    if not stale:
        print("All pages are up to date")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
