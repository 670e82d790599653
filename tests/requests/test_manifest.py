"""run.json: written whole, compared key by key."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from caraserve_cli.errors import OutputError
from caraserve_cli.requests.manifest import check_manifest, write_manifest

MANIFEST = {"base": "tiny", "stop": ("a", "b"), "seed": None, "token_ids": True, "limits": {"x": 1, "y": 2}}


def test_the_same_settings_pass(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    check_manifest(tmp_path, MANIFEST)
    check_manifest(tmp_path, MANIFEST | {"stop": ["a", "b"], "limits": {"y": 2, "x": 1}})
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_every_difference_is_named_with_both_values(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    now = {
        "base": "large",
        "stop": ("a",),
        "seed": None,
        "token_ids": 1,
        "limits": {"x": 1, "y": 2},
        "new": 0,
    }
    with pytest.raises(OutputError) as caught:
        check_manifest(tmp_path, now)
    assert str(caught.value) == (
        f'\'{tmp_path}\' belongs to a run with other settings (base was "tiny", now is "large"; '
        'new was not set, now is 0; stop was ["a","b"], now is ["a"]; token_ids was true, now is 1); '
        "resume with the same ones, or choose another --out"
    )


@pytest.mark.parametrize(
    ("typed", "advice"),
    [
        (
            "cd /a && run job.toml --resume -q",
            "the command is the run's own: put back what has changed in the",
        ),
        (
            "cd /a && run job.toml --resume --seed 1",
            "the command that goes on with it: `cd /a && run --resume",
        ),
        (None, "the command that goes on with it: `cd /a && run --resume -v job.toml`"),
    ],
)
def test_a_command_that_was_just_refused_is_no_advice(tmp_path: Path, typed: str | None, advice: str) -> None:
    write_manifest(tmp_path, {"seed": 1}, "cd /a && run --resume -v job.toml")
    with pytest.raises(OutputError) as caught:
        check_manifest(tmp_path, {"seed": 2}, typed=typed)
    assert advice in str(caught.value)


def test_what_another_version_wrote_is_compared_updated_and_shown_as_it_is(tmp_path: Path) -> None:
    write_manifest(tmp_path, {"base": "tiny"})

    def update(earlier: Mapping[str, object]) -> dict[str, object]:
        return {"base": f"/{earlier['base']}", "new": 0}

    check_manifest(tmp_path, {"base": "/tiny", "new": 0}, update)
    with pytest.raises(OutputError, match=r'\(base was "tiny", now is "/large"; new was not set, now is 1\)'):
        check_manifest(tmp_path, {"base": "/large", "new": 1}, update)


def test_a_key_set_to_null_is_not_a_key_left_out(tmp_path: Path) -> None:
    write_manifest(tmp_path, {"base": "tiny", "seed": None})
    with pytest.raises(OutputError, match="seed was null, now is not set"):
        check_manifest(tmp_path, {"base": "tiny"})


@pytest.mark.parametrize("content", [b"", b"{", b"[]"])
def test_a_damaged_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(OutputError, match=r"run.json' is damaged: not a JSON object; choose another --out"):
        check_manifest(tmp_path, MANIFEST)


def test_a_manifest_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"run.json' cannot be written: No such file or directory"):
        write_manifest(tmp_path / "missing", MANIFEST)


def test_of_several_files_it_says_which_is_new_and_which_is_gone(tmp_path: Path) -> None:
    write_manifest(tmp_path, {"requests": "/r/day-1.jsonl, /r/day-2.jsonl"})
    with pytest.raises(
        OutputError, match=r"\(requests: '/r/day-3.jsonl' is new\); resume with the same ones"
    ):
        check_manifest(tmp_path, {"requests": "/r/day-1.jsonl, /r/day-2.jsonl, /r/day-3.jsonl"})
    with pytest.raises(OutputError, match=r"requests: '/r/day-0.jsonl' is new and '/r/day-2.jsonl' is gone"):
        check_manifest(tmp_path, {"requests": "/r/day-0.jsonl, /r/day-1.jsonl"})
    with pytest.raises(OutputError, match=r'requests was "/r/day-1.jsonl, /r/day-2.jsonl", now is "/r/day-2'):
        check_manifest(tmp_path, {"requests": "/r/day-2.jsonl, /r/day-1.jsonl"})
