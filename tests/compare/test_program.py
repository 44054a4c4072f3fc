"""tools/compare.py: what its command line refuses, and what it says where runs failed."""

from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT, load_program

from .synthetic import result, write

SCREEN = str(ROOT / "projects" / "SPT" / "plans" / "screen.yaml")
CONFIGS = ("--configs", "dense.yaml", "spt.yaml", "--dataset", "shapes")


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return load_program(ROOT / "tools" / "compare.py")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([SCREEN, "--max-iter", "0"], "--max-iter expects a number above 0. Got 0"),
        ([SCREEN, "--max-iter", "-5"], "--max-iter expects a number above 0. Got -5"),
        ([SCREEN, "--minutes", "0"], "--minutes expects a number above 0. Got 0.0"),
        ([SCREEN, "--minutes", "-1.5"], "--minutes expects a number above 0. Got -1.5"),
        ([SCREEN, "--minutes", "nan"], "--minutes expects a number above 0. Got nan"),
        ([SCREEN, "--minutes", "1", "--max-iter", "1"], "expects one of --max-iter and --minutes"),
        ([*CONFIGS, "--variants", "spt"], "--variants, --data-sets and --data are of a plan"),
        ([*CONFIGS, "--data", "shapes=here"], "--variants, --data-sets and --data are of a plan"),
        (["--report", "here", "--variants", "spt"], "--variants, --data-sets and --data are of a plan"),
        ([SCREEN, "--dataset", "shapes"], "--dataset goes with --configs"),
        ([SCREEN, "--data", "shapes"], "--data expects NAME=FOLDER"),
        (["--report", "here", "--brief"], "--brief goes with --document"),
        ([], "expects one of PLAN.yaml, --configs and --report"),
    ],
)
def test_a_command_line_that_cannot_be_is_refused(
    arguments: list[str], message: str, program: ModuleType, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        program.parse_arguments(arguments)
    assert message in capsys.readouterr().err


def test_a_budget_of_the_command_line_is_that_of_every_run(program: ModuleType) -> None:
    for arguments, expected in ((["--max-iter", "7"], (7, None)), (["--minutes", "0.5"], (None, 0.5))):
        plan = program.build_plan(program.parse_arguments([SCREEN, *arguments]))
        budgets = {plan.budget_of(run) for run in plan.runs()}
        assert [(budget.max_iter, budget.minutes) for budget in budgets] == [expected]


@pytest.mark.parametrize("finished", [[], ["spt"], ["dense", "spt"]], ids=["none", "no reference", "two"])
def test_what_failed_is_said_whatever_there_is_to_report(
    finished: list[str],
    program: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """Every run fails, but for those that had been made before."""
    results = write(tmp_path / "results", [result(variant=name) for name in finished])
    failed = {("shapes", name, 1): "out of memory" for name in ("dense", "spt")}
    monkeypatch.setattr(program.Matrix, "perform", lambda matrix: failed)
    places = ["--output", str(tmp_path / "runs"), "--results", str(results)]
    assert program.main([*CONFIGS, *places]) == 1
    lines = capsys.readouterr().out.splitlines()
    for name in ("dense", "spt"):
        assert f"FAILED: shapes / {name} / seed 1: out of memory" in lines
    reported = any(line.startswith("| shapes | spt |") for line in lines)
    assert (reported, any(line.startswith("No report: ") for line in lines)) == (len(finished) == 2, len(finished) < 2)


def test_a_second_comparison_of_the_same_name_is_refused_with_the_cure(
    program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    results = write(tmp_path, [result(plan="comparison", variant=name) for name in ("dense", "spt")])
    command = ["--configs", "dat.yaml", "vit.yaml", "--dataset", "shapes", "--results", str(results)]
    assert program.main([*command, "--output", str(tmp_path / "runs")]) == 2
    assert "HINT: give every comparison a folder of its own" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    # As before, whichever variant is asked for as the reference.
    assert program.main(["--report", str(results), "--reference", "spt"]) == 0
    assert "| shapes | spt | 1 |" in capsys.readouterr().out
