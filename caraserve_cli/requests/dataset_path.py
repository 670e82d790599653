"""How a source names a dataset: where it is, what kind it is of, and what is chosen in it. Reads no row.

A name is `hf://OWNER/NAME` (or `hf://datasets/OWNER/NAME`), a folder that `save_to_disk` made or that is laid
out like a dataset's repository, or a Parquet, Arrow, CSV or TSV file; `?split=…` (also `config`, `revision`)
chooses in it.
"""

from __future__ import annotations

from pathlib import Path, PurePath
from urllib.parse import parse_qsl

from caraserve_cli.errors import InputError
from caraserve_cli.requests.hub import HUB_PREFIX, check_hub_name, hub_name

# The end of a file's name → its builder, as `datasets` calls what reads such files.
BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".tsv": "csv"}
_QUERY_KEYS = ("split", "config", "revision")
_SAVED_FILES = ("state.json", "dataset_dict.json")


def is_dataset(source: str) -> bool:
    """Whether a source is one of the kinds above, by its name, or because it is a folder."""
    path, _ = split_query(source)
    is_file = PurePath(path).suffix.lower() in BUILDERS
    return source.startswith(HUB_PREFIX) or is_file or Path(path).is_dir()


def dataset_name(source: str) -> str:
    """The last part of its name, without the query and a file's ending."""
    path = PurePath(split_query(source)[0])
    if source.startswith(HUB_PREFIX):
        return path.name
    return path.stem if path.suffix.lower() in BUILDERS else path.name


def check_dataset(source: str) -> None:
    """Look for it without reading it.

    Raises:
        InputError: a file is missing, or the query has an unknown key.
    """
    path, query = split_query(source)
    unknown = next((key for key in query if key not in _QUERY_KEYS), None)
    if unknown is not None:
        raise InputError(f"dataset '{source}': unknown '{unknown}'; after ? come {', '.join(_QUERY_KEYS)}")
    if source.startswith(HUB_PREFIX):
        check_hub_name(source, path)
        return
    if not Path(path).exists():
        raise InputError(f"requests file '{path}' does not exist")
    if "revision" in query:
        raise InputError(f"dataset '{source}': revision= is for hf://OWNER/NAME; leave it out")
    if "config" in query and (Path(path).is_file() or is_saved(Path(path))):
        raise InputError(f"dataset '{source}': it has no configurations; leave out config=")
    if Path(path).is_dir() and not _holds_data(Path(path)):
        raise InputError(
            f"requests '{path}' is a folder without a dataset's files; name a file in it, or several"
        )


def _holds_data(folder: Path) -> bool:
    return any(
        file.name in _SAVED_FILES or file.suffix.lower() in (*BUILDERS, ".json", ".jsonl", ".gz", ".zst")
        for file in folder.rglob("*")
    )


def split_query(source: str) -> tuple[str, dict[str, str]]:
    """What stands before the `?`, OWNER/NAME of one on the Hub; and the keys after it."""
    path, _, query = source.partition("?")
    path = hub_name(path) if source.startswith(HUB_PREFIX) else path
    return path, dict(parse_qsl(query, keep_blank_values=True))


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` made it."""
    return any((folder / file).is_file() for file in _SAVED_FILES)


def is_csv(path: str) -> bool:
    """Whether it is a CSV or TSV file that is there."""
    return Path(path).is_file() and BUILDERS.get(PurePath(path).suffix.lower()) == "csv"
