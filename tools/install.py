#!/usr/bin/env python3
"""
Make ``.venv`` and install the tested set, detectron2 and this project into it.

usage: python3 tools/install.py [--force] [--same-python]

It needs nothing but Python 3.10 to 3.13 with its venv module, runs pip nowhere but in ``.venv``, and does its work
once: a second call returns at once unless the files under requirements/ have changed since. (Its syntax is older than
3.10 so that an older Python gets to read the message that names the cure.)
"""

import argparse
import base64
import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
STAMP = VENV / "spt_d2.stamp"
LOG = VENV / "install.log"
OLDEST, NEWEST = (3, 10), (3, 13)

# An unpacked detectron2 is Python that runs on every version, but it was published for one; a compiled part that fits
# this torch would have to be built here, and no R-CNN, RetinaNet or PanopticFPN needs it.
BUILD_DETECTRON2 = """\
HINT: build detectron2 from source instead (needs git, a C++ compiler and a few minutes), then start again:
  .venv/bin/python -m pip install --no-build-isolation \\
    'git+https://github.com/facebookresearch/detectron2.git@02b5c4e295e990042a714712c21dc79b731e8833'"""


class InstallError(Exception):
    """A step that failed; the text is all that the user gets to see."""


def log(text: str) -> None:
    """Print a line now: output may be a pipe, and pip takes its time."""
    print(text, flush=True)


def environment() -> dict:
    """The environment for pip, less what would make it install elsewhere or see packages outside ``.venv``."""
    unwanted = ("PYTHONHOME", "PYTHONPATH", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_REQUIRE_HASHES")
    env = {name: value for name, value in os.environ.items() if name not in unwanted}
    env.update(PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1", PIP_PROGRESS_BAR="off")
    return env


def shown(command: list) -> str:
    """A command as it could be typed at the root of the repository."""
    words = [str(word).replace(str(ROOT) + os.sep, "") for word in command]
    return " ".join("'%s'" % word if " " in word or "\n" in word else word for word in words)


def run(command: list, hint: str = "") -> str:
    """
    Run a command without terminal input, keep its output in the log, and return it.

    Raises:
        InstallError: it failed; with the command and its output.
    """
    lines = []
    with subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        errors="replace",
        cwd=str(ROOT),
        env=environment(),
    ) as process:
        for line in process.stdout or ():
            lines.append(line)
            _report_progress(line)
    code = process.returncode
    if VENV.is_dir():
        with LOG.open("a", encoding="utf-8") as stream:
            stream.write("$ %s\n%s(exit code %d)\n" % (shown(command), "".join(lines), code))
    if code != 0:
        text = "command: %s\nexit code: %d\noutput:\n%s" % (shown(command), code, "".join(lines[-60:]).rstrip())
        if len(lines) > 60:
            text += "\n(the last 60 lines; all of it: %s)" % shown([LOG])
        raise InstallError(text + ("\n" + hint if hint else ""))
    return "".join(lines)


def _report_progress(line: str) -> None:
    """Of pip's hundreds of lines, show the long waits: large downloads and the unpacking."""
    words = line.split()
    if words[:1] == ["Downloading"] and words[-1:] == ["MB)"] and float(words[-2].lstrip("(")) >= 100:
        log("      downloading %s, %s MB" % ("-".join(words[1].split("/")[-1].split("-")[:2]), words[-2].lstrip("(")))
    elif line.startswith("Installing collected packages:"):
        count = line.count(",") + 1
        if count > 20:
            log("      unpacking %d packages" % count)


def pip(*arguments: object, hint: str = "") -> str:
    """Run pip inside ``.venv``."""
    return run([VENV_PYTHON, "-m", "pip", *arguments], hint)


def check_python() -> None:
    """
    Refuse an interpreter that the pinned set has no packages for.

    Raises:
        InstallError: with the versions that will do.
    """
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return
    raise InstallError(
        "install.py expects Python %d.%d to %d.%d. Got %s (%s).\n"
        "HINT: name another interpreter: `make PYTHON=python3.12 ...`, or `python3.12 tools/install.py`."
        % (OLDEST + NEWEST + (sys.version.split()[0], sys.executable))
    )


def fingerprint() -> str:
    """A hash of what decides the contents of ``.venv``: the requirements, and where the project stands."""
    digest = hashlib.sha256(str(ROOT).encode())
    for path in [*sorted((ROOT / "requirements").glob("*.txt")), ROOT / "setup.py"]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def venv_version() -> tuple:
    """Version (major, minor) of the Python in ``.venv``; empty where there is none that runs."""
    try:
        script = "import sys; print(sys.version_info[0], sys.version_info[1])"
        output = subprocess.check_output([str(VENV_PYTHON), "-c", script], stdin=subprocess.DEVNULL)
        return tuple(int(part) for part in output.split())
    except (OSError, subprocess.CalledProcessError, ValueError):
        return ()


def make_environment() -> str:
    """Create ``.venv``, or keep the one that is there if it works. Returns what was done."""
    version = venv_version()
    if not version:
        existed = VENV.exists()
        run([sys.executable, "-m", "venv", *(["--clear"] if existed else []), VENV])
        return "Python %s" % sys.version.split()[0] + (", made anew: the old one did not run" if existed else "")
    if not OLDEST <= version <= NEWEST:
        raise InstallError(".venv holds Python %d.%d.\nHINT: remove the folder .venv, then start again." % version)
    hint = "HINT: .venv has no pip. Remove the folder .venv, then start again."
    if "pip" not in run([VENV_PYTHON, "-c", "import importlib.util as u; print('pip' if u.find_spec('pip') else '')"]):
        run([VENV_PYTHON, "-m", "ensurepip"], hint)
    return "kept, Python %d.%d" % version


def install_requirements() -> str:
    """Install the pinned set. Returns what was done."""
    requirements = ROOT / "requirements"
    # Installed first, so that the two source distributions of the set are built with them and pip need not set up
    # a build environment for each.
    pip("install", "-r", requirements / "build.txt")
    wanted = ["-r", requirements / "runtime.txt", "-r", requirements / "dev.txt"]
    # Modules are compiled when first imported: most of the 20,000 never are.
    pip("install", "--no-compile", "--no-build-isolation", *wanted, "-c", requirements / "constraints.txt")
    return "torch, torchvision, xformers and %d more" % (len(_names(requirements)) - 3)


def _names(requirements: Path) -> set:
    """Names of the packages that are asked for by name."""
    texts = [(requirements / name).read_text() for name in ("build.txt", "runtime.txt", "dev.txt")]
    lines = [line for text in texts for line in text.splitlines() if line and not line.startswith("#")]
    return {line.split("==")[0] for line in lines}


def install_detectron2() -> str:
    """Keep an importable detectron2, or install the one on the package index. Returns what was done."""
    probe = "import importlib.util as u; s = u.find_spec('detectron2'); print(s.origin if s and s.origin else '')"
    found = run([VENV_PYTHON, "-c", probe]).strip()
    if found:
        hint = "HINT: the detectron2 that is installed does not work. Mend or uninstall it, then start again."
        run([VENV_PYTHON, "-c", "import detectron2.config, detectron2.modeling"], hint)
        return "kept, " + shown([Path(found).parent])
    with tempfile.TemporaryDirectory() as folder:
        published_for = ["--only-binary=:all:", "--python-version", "3.10", "--implementation", "cp", "--abi", "none"]
        wanted = ["-r", ROOT / "requirements" / "detectron2.txt"]
        pip("download", "--no-deps", *published_for, "-d", folder, *wanted, hint=BUILD_DETECTRON2)
        wheel = next(Path(folder).glob("*.whl"))
        retagged = retag(wheel, Path(folder))
        pip("install", "--no-deps", "--no-index", "--no-compile", retagged, hint=BUILD_DETECTRON2)
    run([VENV_PYTHON, "-c", "import detectron2.config, detectron2.modeling"], BUILD_DETECTRON2)
    return "-".join(retagged.name.split("-")[:2]) + " from the package index"


def retag(wheel: Path, folder: Path) -> Path:
    """
    Write a wheel of detectron2 that installs on every Python.

    Left out are its compiled file, which fits one version of Python and of torch, and every package but detectron2
    (it also holds one named ``tools``, which would hide any folder of scripts with that name). Its metadata no longer
    ask for numpy < 2, which detectron2 has outgrown, or for black, which it uses in one function, to print.

    Args:
        wheel: the published wheel.
        folder: where to write, another name is given.

    Returns:
        The path of the new wheel.
    """
    name, version = wheel.name.split("-")[:2]
    info = "%s-%s.dist-info/" % (name, version)
    target = folder / ("%s-%s-py3-none-any.whl" % (name, version))
    record = []
    with zipfile.ZipFile(str(wheel)) as source, zipfile.ZipFile(str(target), "w", zipfile.ZIP_DEFLATED) as result:
        for member in source.namelist():
            if not member.startswith(("detectron2/", info)) or member.endswith((".so", "/", "RECORD")):
                continue
            data = source.read(member)
            if member == info + "WHEEL":
                data = _without(data, b"Tag:", b"Root-Is-Purelib:") + b"Root-Is-Purelib: true\nTag: py3-none-any\n"
            elif member == info + "METADATA":
                data = _without(data, b"Requires-Dist: numpy<2", b"Requires-Dist: black")
            elif member == info + "top_level.txt":
                data = b"detectron2\n"
            result.writestr(member, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append("%s,sha256=%s,%d\n" % (member, digest, len(data)))
        result.writestr(info + "RECORD", "".join(record) + info + "RECORD,,\n")
    return target


def _without(data: bytes, *starts: bytes) -> bytes:
    """Lines of a metadata file, less those that begin with one of ``starts``; it ends where a line ends."""
    kept = [line for line in data.splitlines() if not line.startswith(starts)]
    while kept and not kept[-1]:
        kept.pop()
    return b"\n".join(kept) + b"\n"


def install_project() -> str:
    """Install this project, editable, and see that it imports. Returns what was done."""
    pip("install", "--no-deps", "--no-build-isolation", "-e", ROOT)
    return "spt_d2 %s, editable" % run([VENV_PYTHON, "-c", "import spt_d2; print(spt_d2.__version__)"]).split()[-1]


def install() -> None:
    """Run all steps, say what each did and how long it took, and leave the stamp."""
    steps = [
        (".venv", make_environment),
        ("requirements", install_requirements),
        ("detectron2", install_detectron2),
        ("this project", install_project),
    ]
    begin = time.time()
    for number, (name, step) in enumerate(steps, 1):
        log("[%d/%d] %s ..." % (number, len(steps), name))
        start = time.time()
        done = step()
        log("      %s (%.0f s)" % (done, time.time() - start))
    STAMP.write_text(fingerprint() + "\n")
    log("installed in %.0f s" % (time.time() - begin))


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description="Make .venv and install the tested set and this project into it.")
    parser.add_argument("--force", action="store_true", help="install even if nothing has changed since the last time")
    parser.add_argument(
        "--same-python", action="store_true", help="fail if .venv was made with another version than runs this"
    )
    options = parser.parse_args()
    try:
        version = venv_version()
        if options.same_python and version and version != sys.version_info[:2]:
            here = sys.version_info[:2]
            raise InstallError(
                ".venv holds Python %d.%d, and %d.%d is asked for.\n"
                "HINT: remove the folder .venv to make it anew, or leave out PYTHON= to use it." % (version + here)
            )
        if not options.force and version and STAMP.is_file() and STAMP.read_text().strip() == fingerprint():
            return 0
        check_python()
        install()
    except InstallError as error:
        log("\nINSTALLATION FAILED\n%s" % error)
        return 1
    except KeyboardInterrupt:
        log("\nstopped; start again to go on")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
