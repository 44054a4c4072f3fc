"""The installer: what it makes of a published detectron2, when it does its work again, and how it fails."""

import base64
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

INSTALLER = Path(__file__).resolve().parents[1] / "tools" / "install.py"
INFO = "sal_detectron2-0.7.2.dist-info/"
PUBLISHED = {
    "detectron2/__init__.py": "",
    "detectron2/_C.cpython-310-x86_64-linux-gnu.so": "machine code",
    "detectron2/model_zoo/configs/a.yaml": "MODEL: 1\n",
    "tools/__init__.py": "",
    INFO + "METADATA": "Name: sal-detectron2\nVersion: 0.7.2\nRequires-Dist: numpy<2\n"
    "Requires-Dist: yacs>=0.1.8\nRequires-Dist: black\n\n",
    INFO + "WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: false\nTag: cp310-none-any\n\n",
    INFO + "top_level.txt": "detectron2\ntools\n",
    INFO + "RECORD": "detectron2/__init__.py,,\n",
}


@pytest.fixture
def installer(tmp_path):
    """The installer of a project that has no requirements, in a folder of its own."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "requirements").mkdir()
    (tmp_path / "setup.py").write_text("")
    for name in ("build", "runtime", "dev", "constraints", "detectron2"):
        (tmp_path / "requirements" / f"{name}.txt").write_text("# nothing\n")
    shutil.copy(INSTALLER, tmp_path / "tools")
    spec = importlib.util.spec_from_file_location("install", tmp_path / "tools" / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def published(tmp_path) -> Path:
    """A wheel like the published one, in small."""
    path = tmp_path / "sal_detectron2-0.7.2-cp310-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in PUBLISHED.items():
            archive.writestr(name, text)
    return path


def start(installer, *arguments: str) -> subprocess.CompletedProcess:
    """Run the installer as a user does."""
    command = [sys.executable, str(installer.ROOT / "tools" / "install.py"), *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def test_retagged_wheel_holds_detectron2_alone_and_a_true_record(installer, published, tmp_path):
    (tmp_path / "out").mkdir()
    wheel = installer.retag(published, tmp_path / "out")
    assert wheel.name == "sal_detectron2-0.7.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    assert set(contents) == {name for name in PUBLISHED if not name.endswith(".so") and not name.startswith("tools/")}
    assert contents[INFO + "WHEEL"].decode().splitlines()[-2:] == ["Root-Is-Purelib: true", "Tag: py3-none-any"]
    assert b"cp310" not in contents[INFO + "WHEEL"]
    assert contents[INFO + "METADATA"].decode().splitlines()[2:] == ["Requires-Dist: yacs>=0.1.8"]
    record = contents.pop(INFO + "RECORD").decode().splitlines()
    expected = {INFO + "RECORD,,"}
    for name, data in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        expected.add(f"{name},sha256={digest},{len(data)}")
    assert len(record) == len(expected) and set(record) == expected


def test_retagged_wheel_installs(installer, published, tmp_path):
    (tmp_path / "out").mkdir()
    wheel = installer.retag(published, tmp_path / "out")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--target", str(tmp_path / "site"), str(wheel)], check=True, capture_output=True)
    assert (tmp_path / "site" / "detectron2" / "model_zoo" / "configs" / "a.yaml").is_file()
    assert not (tmp_path / "site" / "tools").exists()


def test_fingerprint_follows_the_requirements_and_nothing_else(installer, tmp_path):
    before = installer.fingerprint()
    (tmp_path / "README.md").write_text("more")
    assert installer.fingerprint() == before
    seen = {before}
    for name in ("requirements/runtime.txt", "requirements/detectron2.txt", "requirements/more.txt", "setup.py"):
        (tmp_path / name).write_text("changed==1\n")
        seen.add(installer.fingerprint())
    assert len(seen) == 5


def test_nothing_is_done_when_nothing_has_changed(installer):
    bin_folder = installer.VENV / "bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "python").symlink_to(sys.executable)
    installer.STAMP.write_text(installer.fingerprint() + "\n")
    before = sorted(installer.VENV.rglob("*"))
    done = start(installer)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(installer.VENV.rglob("*")) == before


def test_a_failed_step_shows_its_command_and_output_and_leaves_no_stamp(installer):
    (installer.ROOT / "requirements" / "build.txt").write_text("--no-index\nspt-d2-no-such-package==1\n")
    done = start(installer)
    assert done.returncode == 1
    assert "[1/4] .venv" in done.stdout and "[3/4]" not in done.stdout
    assert "command: .venv/bin/python -m pip install -r requirements/build.txt\nexit code: 1\n" in done.stdout
    assert "No matching distribution found for spt-d2-no-such-package==1" in done.stdout
    assert "No matching distribution" in installer.LOG.read_text()
    assert not installer.STAMP.exists()


def test_where_detectron2_cannot_be_had_the_message_says_how_to_build_it(installer, monkeypatch):
    (installer.ROOT / "requirements" / "detectron2.txt").write_text("--no-index\nspt-d2-no-such-package==1\n")
    run = installer.run
    # The interpreter of the tests saves making another environment; only the probe is told that nothing is there.
    monkeypatch.setattr(installer, "VENV_PYTHON", Path(sys.executable))
    monkeypatch.setattr(installer, "run", lambda command, *hint: "" if "-c" in command else run(command, *hint))
    with pytest.raises(installer.InstallError) as caught:
        installer.install_detectron2()
    assert "pip download" in str(caught.value) and "No matching distribution" in str(caught.value)
    assert "pip install --no-build-isolation" in str(caught.value)
    assert "git+https://github.com/facebookresearch/detectron2.git@" in str(caught.value)


def test_an_importable_detectron2_is_kept(installer, monkeypatch):
    pytest.importorskip("detectron2")
    monkeypatch.setattr(installer, "VENV_PYTHON", Path(sys.executable))
    monkeypatch.setattr(installer, "pip", lambda *arguments, hint="": pytest.fail("pip was run"))
    assert installer.install_detectron2().startswith("kept, ")


@pytest.mark.parametrize("version, refused", [((3, 9), True), ((3, 10), False), ((3, 13), False), ((3, 14), True)])
def test_interpreters_without_pinned_packages_are_refused(installer, monkeypatch, version, refused):
    monkeypatch.setattr(installer.sys, "version_info", version)
    if refused:
        with pytest.raises(installer.InstallError, match=r"expects Python 3\.10 to 3\.13\. Got (.|\n)*HINT: .*PYTHON="):
            installer.check_python()
    else:
        installer.check_python()


def test_pip_is_told_nothing_that_makes_it_install_elsewhere(installer, monkeypatch):
    for name in ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PYTHONPATH", "PYTHONHOME"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("PIP_INDEX_URL", "kept")
    assert not {"PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PYTHONPATH", "PYTHONHOME"} & set(installer.environment())
    assert installer.environment()["PIP_INDEX_URL"] == "kept"
