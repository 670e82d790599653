"""How long a report takes to open, and what it looks like: `python -m tests.report.open_report FILE FOLDER`
prints the times and writes screenshots and what is printed on paper to FOLDER.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.report.test_browser import FLAGS, find_chromium, opened


def main() -> None:
    file, folder = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    print(f"{file.stat().st_size:,} bytes")  # noqa: T201
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(playwright), args=list(FLAGS))
        for width in (1280, 390):
            for scheme in ("light", "dark"):
                begin_s = time.perf_counter()
                page, seen = opened(browser, file, width, scheme)
                print(width, scheme, f"{time.perf_counter() - begin_s:.2f} s", *seen)  # noqa: T201
                page.screenshot(path=folder / f"{width}-{scheme}.png", full_page=True)
                page.pdf(path=folder / "paper.pdf", format="A4")
                page.close()
        browser.close()


if __name__ == "__main__":
    main()
