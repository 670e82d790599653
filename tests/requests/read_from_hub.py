"""What `DatasetSource` says of each source that is named, a JSON line each, in a process of its own:
`huggingface_hub` reads HF_ENDPOINT once, when it is imported.

    python -m tests.requests.read_from_hub hf://owner/name
"""

from __future__ import annotations

import json
import sys
import time

from caraserve_cli.errors import InputError
from caraserve_cli.requests.columns import ColumnMap
from caraserve_cli.requests.dataset_path import check_dataset
from caraserve_cli.requests.dataset_source import DatasetSource


def told(source: str) -> object:
    """Its rows, or why there are none."""
    try:
        check_dataset(source)
        with DatasetSource(source, ColumnMap()) as lines:
            return [json.loads(line.data or b"") for line in lines]
    except InputError as error:
        return str(error)


if __name__ == "__main__":
    # The hub's client tries five times, and waits 23 s in all.
    time.sleep = lambda _s: None
    for each in sys.argv[1:]:
        print(json.dumps(told(each)))  # noqa: T201
