"""Who cleans up after a driver, however it ends."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from caraserve_cli.fleet.guarded_folder import GuardedFolder
from tests.cli.command import user_environment

# A process with a file open below a folder, that ends for nothing less than SIGKILL.
STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
file = open(sys.argv[1], "w")
print("open", flush=True)
time.sleep(600)
"""


def start_user(path: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", STUBBORN, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"open\n"
    return process


def test_users_of_the_folder_end_with_the_driver_and_nobody_else(tmp_path: Path) -> None:
    guarded = GuardedFolder("caraserve-test-")
    folder, other = guarded.path, tmp_path
    user, stranger = start_user(folder / "log"), start_user(other / "log")
    # The driver may have files open there itself, and lives.
    with (folder / "own").open("w"):
        assert user.poll() is None
        guarded.close()
    assert user.wait(30) == -9
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()
    assert not folder.exists()
    assert other.exists()


def test_a_killed_owner_leaves_no_folder() -> None:
    code = "from caraserve_cli.fleet.guarded_folder import GuardedFolder as G; g = G('caraserve-test-'); "
    code += "(g.path / 'file').write_text('x'); print(g.path, flush=True); input()"
    owner = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=user_environment()
    )
    assert owner.stdout is not None
    folder = Path(owner.stdout.readline().decode().strip())
    assert (folder / "file").exists()
    owner.kill()
    owner.communicate()
    until_s = time.monotonic() + 30
    while folder.exists() and time.monotonic() < until_s:
        time.sleep(0.02)
    assert not folder.exists()
