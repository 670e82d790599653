"""Names, links, roots and their errors. An adapter_config.json is all that makes a folder an adapter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.errors import AdapterError, OptionError


def make(*folders: Path) -> None:
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter_config.json").write_text("{}")


def test_names_are_sorted_paths_below_the_root(tmp_path: Path) -> None:
    make(tmp_path / "b", tmp_path / "team" / "deep" / "c", tmp_path / "a", tmp_path / "a" / "checkpoint-10")
    (tmp_path / "empty").mkdir()
    library = AdapterLibrary.scan([tmp_path])
    assert library.names == ("a", "a/checkpoint-10", "b", "team/deep/c")
    assert library.path("team/deep/c") == tmp_path / "team" / "deep" / "c"
    assert "a" in library
    assert "team" not in library
    assert len(library) == 4


def test_a_root_that_is_an_adapter_goes_by_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "summarise", tmp_path / "summarise" / "checkpoint-1")
    assert AdapterLibrary.scan([tmp_path / "summarise"]).names == ("checkpoint-1", "summarise")
    monkeypatch.chdir(tmp_path / "summarise")
    assert AdapterLibrary.scan([Path()]).names == ("checkpoint-1", "summarise")


def test_several_roots(tmp_path: Path) -> None:
    make(tmp_path / "one" / "a", tmp_path / "two" / "b")
    assert AdapterLibrary.scan([tmp_path / "one", tmp_path / "two"]).names == ("a", "b")


def test_one_name_in_two_roots_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "one" / "x" / "a", tmp_path / "two" / "x" / "a")
    with pytest.raises(OptionError) as caught:
        AdapterLibrary.scan([tmp_path / "one", tmp_path / "two"])
    for part in ("--adapters", "'x/a'", str(tmp_path / "one" / "x" / "a"), str(tmp_path / "two" / "x" / "a")):
        assert part in str(caught.value)


def test_a_root_must_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, problem in (("missing", "does not exist"), ("file", "is not a folder")):
        with pytest.raises(OptionError, match=f"--adapters: {tmp_path / name} {problem}"):
            AdapterLibrary.scan([tmp_path / name])


def test_hidden_folders_are_left_out(tmp_path: Path) -> None:
    make(tmp_path / ".cache" / "a", tmp_path / "b")
    assert AdapterLibrary.scan([tmp_path]).names == ("b",)


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    make(tmp_path / "elsewhere" / "a", tmp_path / "root" / "team" / "b")
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "team" / "up").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "self").symlink_to(tmp_path / "root" / "self")
    (tmp_path / "root" / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "root" / "team")
    names = AdapterLibrary.scan([tmp_path / "root"]).names
    # An alias is a name of its own: requests may use either.
    assert names == ("linked/a", "linked/back/b", "team/b")


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """In a process of its own: it gives its rights away for good."""
    make(tmp_path / "root" / "locked" / "a")
    tmp_path.chmod(0o755)
    (tmp_path / "root").chmod(0o755)
    (tmp_path / "root" / "locked").chmod(0)
    script = (
        "import os, sys\nfrom pathlib import Path\n"
        "from caraserve_cli.adapters.library import AdapterLibrary\n"
        "from caraserve_cli.errors import OptionError\n"
        "os.chdir(sys.argv[1])\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "try: AdapterLibrary.scan([Path('root')])\n"
        "except OptionError as error: print(error)\n"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    finally:
        (tmp_path / "root" / "locked").chmod(0o755)
    assert done.stdout == "--adapters: root/locked cannot be read: Permission denied\n"


def test_an_unknown_name_suggests_the_nearest(tmp_path: Path) -> None:
    make(tmp_path / "team" / "summarise", tmp_path / "b")
    library = AdapterLibrary.scan([tmp_path])
    assert library.closest("team/sumarize") == "team/summarise"
    assert library.closest("zzzzzz") is None
    with pytest.raises(
        AdapterError, match=r"'team/sumarize': no such adapter; did you mean 'team/summarise'\?"
    ):
        library.path("team/sumarize")


def test_scanning_imports_no_torch() -> None:
    script = "import sys, caraserve_cli.adapters.library; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", script], env=environment, check=False).returncode == 0


def test_a_name_without_its_folder_suggests_the_whole_one(tmp_path: Path) -> None:
    make(tmp_path / "team" / "rs", tmp_path / "r4")
    assert AdapterLibrary.scan([tmp_path]).closest("rs") == "team/rs"


def test_a_folder_that_is_given_twice_is_one_adapter(tmp_path: Path) -> None:
    make(tmp_path / "r4", tmp_path / "team" / "rs")
    assert AdapterLibrary.scan([tmp_path / "r4", tmp_path, tmp_path]).names == ("r4", "team/rs")
