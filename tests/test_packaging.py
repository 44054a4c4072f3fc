"""The package as others install it: a wheel that finds its configs, imports with torch alone, and registers once."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import spt_d2

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
LEAVES = sorted((ROOT / "projects").glob("*/configs/**/*.py"))
NAMES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*") if path.suffix in (".yaml", ".py"))

# Loads every config there is, from wherever spt_d2 is imported from, and says what was found.
LOAD_ALL = """
import json, re
import spt_d2
from detectron2.config import LazyConfig

def text(cfg):
    return re.sub(" at 0x[0-9a-f]+", "", repr(cfg))  # functions are shown with their address

texts = {name: text(spt_d2.get_config(name)) for name in names}
texts.update({leaf: text(LazyConfig.load(leaf)) for leaf in leaves})
found = [spt_d2.__file__, [spt_d2.get_config_file(name) for name in names], texts]
"""


def run(command: list, cwd: Path, site: Path | None = None) -> str:
    """Run a command in ``cwd`` with ``site`` alone on the module path, and return what it printed."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env["OMP_NUM_THREADS"] = "1"
    if site is not None:
        env["PYTHONPATH"] = str(site)
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel of this tree, built elsewhere, so that no earlier build leaves anything in it."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("spt_d2", "configs", "requirements"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (ROOT / "setup.py", ROOT / "setup.cfg", ROOT / "pyproject.toml", ROOT / "LICENSE", *ROOT.glob("*.md")):
        shutil.copy(path, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-index"]
    run([*pip, "--no-deps", "--no-build-isolation", "-w", target, source], cwd=target)
    return next(target.glob("spt_d2-*.whl"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """A folder the wheel is installed into."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-index"]
    run([*pip, "--no-deps", "--no-compile", "--target", folder, wheel], cwd=folder)
    return folder


def test_wheel_holds_the_package_and_every_file_of_configs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        members = {name for name in archive.namelist() if ".dist-info/" not in name}
    ours = [path for path in (ROOT / "spt_d2").rglob("*") if path.suffix == ".py" or path.name == "py.typed"]
    expected = {path.relative_to(ROOT).as_posix() for path in ours}
    configs = [path for path in CONFIGS.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert len(configs) > 3
    expected |= {"spt_d2/" + path.relative_to(ROOT).as_posix() for path in configs}
    assert members == expected


def test_wheel_asks_for_nothing_the_index_lacks_and_for_no_flavour_of_opencv(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(info).decode()
    needs = re.findall(r"^Requires-Dist: ([\w-]+)(.*)$", metadata, re.MULTILINE)
    always = {name for name, rest in needs if "extra ==" not in rest}
    assert "torch" in always
    assert not {name for name, _ in needs if "detectron2" in name or "opencv" in name}
    assert set(re.findall(r"^Provides-Extra: (.+)$", metadata, re.MULTILINE)) == {"dev", "xformers"}
    assert f"\nVersion: {spt_d2.__version__}\n" in metadata
    assert "\nLicense-File: LICENSE\n" in metadata


def test_installed_wheel_loads_every_config_as_the_source_tree_does(site, tmp_path):
    pytest.importorskip("detectron2")
    known = {"names": NAMES, "leaves": [str(leaf) for leaf in LEAVES]}
    script = f"names, leaves = {known['names']}, {known['leaves']}\n{LOAD_ALL}\nprint(json.dumps(found))"
    file, paths, texts = json.loads(run([sys.executable, "-c", script], tmp_path, site).splitlines()[-1])
    assert Path(file) == site / "spt_d2" / "__init__.py"
    assert [Path(path) for path in paths] == [site / "spt_d2" / "configs" / name for name in NAMES]
    exec(LOAD_ALL, known)
    file, paths, source_texts = known["found"]
    assert Path(file) == ROOT / "spt_d2" / "__init__.py"
    assert [Path(path) for path in paths] == [CONFIGS / name for name in NAMES]
    assert texts == source_texts


def test_config_file_is_found_by_name_and_an_unknown_name_lists_those_close_to_it():
    name = "Shapes-InstanceSegmentation/mask_rcnn_spt_nano_fpn_demo.yaml"
    assert spt_d2.get_config_file(name) == str(CONFIGS / name)
    for wrong in (name.replace("demo", "dmo"), "COCO-InstanceSegmentation/" + name.split("/")[1]):
        with pytest.raises(KeyError, match="get_config_file") as caught:
            spt_d2.get_config_file(wrong)
        assert name in str(caught.value) and repr(wrong) in str(caught.value)
    for outside in ("../setup.py", "", ".", "common", str(CONFIGS / name)):
        with pytest.raises(KeyError, match="get_config_file"):
            spt_d2.get_config_file(outside)


def test_yaml_config_is_not_frozen_and_has_the_projects_keys():
    pytest.importorskip("detectron2")
    cfg = spt_d2.get_config("Base-RCNN-FPN.yaml")
    cfg.MODEL.SPT.THRESHOLD = 0.5
    assert spt_d2.get_config("Base-RCNN-FPN.yaml").MODEL.SPT.THRESHOLD != 0.5


def test_it_imports_with_torch_alone_and_what_needs_detectron2_names_the_cure(tmp_path):
    script = """
import sys, torch
for name in ("detectron2", "xformers", "fvcore", "iopath", "omegaconf", "yacs", "numpy", "PIL", "cv2", "torchvision",
             "matplotlib", "pycocotools", "timm"):
    assert name not in sys.modules or name == "numpy", name
    sys.modules[name] = None
import spt_d2, spt_d2.ops, spt_d2.layers
import pkgutil, importlib
for package in (spt_d2.ops, spt_d2.layers):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
assert spt_d2.get_config_file("Base-RCNN-FPN.yaml")
messages = []
for cause in ("import spt_d2.modeling", "import spt_d2.data", "spt_d2.get_config('Base-RCNN-FPN.yaml')"):
    try:
        exec(cause)
        messages.append("no error")
    except ImportError as error:
        messages.append(str(error))
print(messages)
"""
    messages = eval(run([sys.executable, "-c", script], tmp_path, ROOT))
    assert len(messages) == 3
    for message in messages:
        assert "needs detectron2" in message and "HINT: see INSTALL.md" in message


def test_a_folder_named_detectron2_is_not_taken_for_the_package(tmp_path):
    (tmp_path / "detectron2").mkdir()
    script = "import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p]; import spt_d2._configs"
    script += "; from importlib.util import find_spec; assert find_spec('detectron2') is not None"
    script += "; import spt_d2; print('spt_d2.modeling' in sys.modules)"
    # torch is not needed until ops are imported, so an interpreter without any packages shows it.
    env_site = tmp_path / "site"
    shutil.copytree(ROOT / "spt_d2", env_site / "spt_d2", ignore=shutil.ignore_patterns("__pycache__"))
    assert run([sys.executable, "-S", "-c", script], tmp_path, env_site).strip() == "False"


def test_importing_again_registers_nothing_again():
    pytest.importorskip("detectron2")
    from detectron2.data import DatasetCatalog
    from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY

    def names() -> list:
        registries = [sorted(name for name, _ in registry) for registry in (BACKBONE_REGISTRY, META_ARCH_REGISTRY)]
        return [*registries, sorted(DatasetCatalog.list())]

    before = names()
    assert "build_spt_fpn_backbone" in before[0] and "SelectionGeneralizedRCNN" in before[1]
    importlib.reload(spt_d2)
    importlib.reload(spt_d2.data)
    assert names() == before


def test_public_names():
    assert sorted(spt_d2.__all__) == ["__version__", "get_config", "get_config_file"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", spt_d2.__version__)
