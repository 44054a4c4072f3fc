"""A run ends with the comparison that started it, however that ended."""

import os
import signal
import subprocess
import sys
import time

import pytest

CHILD = """
import os, sys, time
from spt_d2.compare.parent import end_with
end_with(int(sys.argv[1]))
print(os.getpid(), flush=True)
time.sleep(120)
"""
PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())], start_new_session=True)
child.wait()
"""


def is_running(process: int) -> bool:
    """A process that ended, and that nobody has asked about since, is none."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a process of its parent's end")
def test_it_ends_when_its_parent_is_killed():
    with subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        assert is_running(child)
        os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(child)


def test_one_whose_parent_has_ended_already_does_not_begin():
    done = subprocess.run([sys.executable, "-c", CHILD, "1000000000"], capture_output=True, text=True)
    assert done.returncode == 1 and "has ended" in done.stderr and not done.stdout
