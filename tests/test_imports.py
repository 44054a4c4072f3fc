"""One-way imports: ops <- layers <- modeling; ops and layers need torch only; cfg stops at the builders."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "spt_d2"

# What each part of the package may import, besides the standard library and itself.
ALLOWED = {
    "ops": {"torch", "numpy", "pycocotools", "spt_d2.ops"},
    "layers": {"torch", "spt_d2.ops", "spt_d2.layers"},
    "weights": {"torch", "safetensors", "spt_d2.weights"},
    "modeling": {"torch", "detectron2", "fvcore", "spt_d2.ops", "spt_d2.layers", "spt_d2.weights", "spt_d2.modeling"},
}
# The one file that may import xformers.
XFORMERS = PACKAGE / "ops" / "attention.py"


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, inside functions too, as an absolute name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module or ""


def files(part: str) -> list[Path]:
    found = sorted((PACKAGE / part).rglob("*.py"))
    assert found, f"no files in {part}"
    return found


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_point_one_way(part):
    for path in files(part):
        for module in imported(path):
            if module.partition(".")[0] in sys.stdlib_module_names:
                continue
            if path == XFORMERS and within(module, "xformers"):
                continue
            assert any(within(module, allowed) for allowed in ALLOWED[part]), f"{name_of(path)} imports {module}"


def test_xformers_is_imported_by_one_file_and_inside_a_function():
    for path in sorted(PACKAGE.rglob("*.py")):
        users = [module for module in imported(path) if within(module, "xformers")]
        assert not users or path == XFORMERS, f"{name_of(path)} imports {users}"
    top_level = [n for n in ast.parse(XFORMERS.read_text()).body if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert not any("xformers" in ast.unparse(node) for node in top_level)


def test_nothing_in_the_package_imports_projects_tools_or_tests():
    for path in sorted(PACKAGE.rglob("*.py")):
        for module in imported(path):
            assert module.partition(".")[0] not in {"projects", "tools", "tests"}, f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("part", ["ops", "layers"])
def test_no_config_node_reaches_ops_and_layers(part):
    for path in files(part):
        names = {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}
        arguments = {n.arg for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.arg)}
        assert not (names | arguments) & {"cfg", "CfgNode"}, name_of(path)


def test_in_modeling_config_nodes_are_seen_by_builders_alone():
    """``from_config``, ``build_*``, and functions that only those call."""
    callers: dict[str, set[str]] = {}
    takers: dict[str, Path] = {}
    for path in files("modeling"):
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef):
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    callers.setdefault(node.func.id, set()).add(function.name)
            annotations = [ast.unparse(arg.annotation) for arg in function.args.args if arg.annotation]
            arguments = {arg.arg for arg in function.args.args + function.args.kwonlyargs}
            if "cfg" in arguments or any("CfgNode" in text for text in annotations):
                takers[function.name] = path

    def is_builder(name: str) -> bool:
        return name == "from_config" or name.startswith("build_")

    for name, path in takers.items():
        called_by = callers.get(name, set())
        helper = bool(called_by) and all(is_builder(caller) or caller in takers for caller in called_by)
        assert is_builder(name) or helper, f"{name_of(path)}: {name}"
    assert takers


RUN_WITHOUT = """
import sys
for name in ("detectron2", "xformers", "fvcore", "iopath", "timm"):
    sys.modules[name] = None
import pkgutil, importlib
import spt_d2.ops, spt_d2.layers
for package in (spt_d2.ops, spt_d2.layers):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
import torch
from spt_d2.layers.block import SelectPackBlock, SwinBlock
from spt_d2.layers.select_pack_attention import SelectPackOptions
from spt_d2.ops.attention import xformers_available
x, valid = torch.randn(2, 9, 8, 8, requires_grad=True), torch.ones(2, 9, 8, dtype=torch.bool)
block = SelectPackBlock(8, 2, SelectPackOptions(position="relative_bias"), shift_size=3)
out, decision, layout = block(x, valid)
(SwinBlock(8, 2)(out).sum() + decision.score.sum()).backward()
assert all(p.grad is not None for p in block.parameters())
assert not xformers_available()
print("ran")
"""


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_ops_and_layers_run_without_detectron2_and_xformers():
    result = python(RUN_WITHOUT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "ran"


@pytest.mark.parametrize("module", ["spt_d2.modeling", "spt_d2.modeling.backbone"])
def test_modeling_without_detectron2_is_an_import_error_that_names_the_cure(module):
    result = python(f"import sys; sys.modules['detectron2'] = None; import {module}")
    assert result.returncode != 0
    assert "ImportError: spt_d2.modeling needs detectron2" in result.stderr
    assert "HINT: see INSTALL.md; spt_d2.ops and spt_d2.layers need torch only." in result.stderr


def test_ops_and_layers_import_xformers_not_before_it_is_needed():
    result = python("import sys, spt_d2.ops.attention, spt_d2.layers.stage; print('xformers' in sys.modules)")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "False"
