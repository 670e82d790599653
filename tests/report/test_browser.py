"""report.html in a real Chromium: it draws, loads nothing, and says nothing on the console.

Needs Chromium on the machine (Debian: `apt-get install chromium`); CARASERVE_BROWSER=required, as CI sets it
where it has installed one, makes its absence a failure.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from caraserve_cli.events import StepRecord
from caraserve_cli.report.html import write_html
from caraserve_cli.report.run_facts import RunFacts
from caraserve_cli.report.run_report import build_report
from caraserve_cli.report.summary import RunSummary

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
IS_REQUIRED = os.environ.get("CARASERVE_BROWSER") == "required"
HOSTILE = "</script><img src=x onerror=document.title='hit'><script>document.title='hit'</script>"
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking")

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and not IS_REQUIRED,
    reason="NOT TESTED: report.html in a browser, for there is no Chromium",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM is not None, "CARASERVE_BROWSER=required, and there is no Chromium"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture
def page_file(make_row: Callable[..., dict[str, object]], facts: RunFacts, tmp_path: Path) -> Path:
    """A report with every section, of which an adapter and an id are hostile."""
    summary = RunSummary()
    for number in range(300):
        adapter = (None, "spell", HOSTILE)[number % 3]
        summary.add_answer(
            make_row(adapter, id=f"{HOSTILE}{number}", latency_ms=35.0 + number, slack_ms=200.0 - number)
        )
    for number in range(50):
        summary.on_step(
            StepRecord(
                start_ms=10.0 * number,
                end_ms=10.0 * number + 9,
                num_prefill_tokens=3,
                num_decode_tokens=4,
                num_running=number % 7,
                num_waiting=1,
                num_preempted=0,
                num_cached_tokens=0,
                num_adapter_loads=0,
                adapter_load_ms=0.0,
                num_kv_blocks_used=5,
                num_kv_blocks=10,
                adapter_pool_used_bytes=1,
                adapter_pool_bytes=2,
            )
        )
    return write_html(build_report(summary, facts, {"spell": 8, HOSTILE: 4}), tmp_path)


def opened(browser: Browser, file: Path, width: int, scheme: str) -> tuple[Page, list[str], list[str]]:
    """The page, what it asked for beside itself, and what it said on the console."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-drawn]", state="attached")
    return page, [url for url in asked if url != file.as_uri() and not url.startswith("data:")], said


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_draws_all_and_loads_nothing(browser: Browser, page_file: Path, width: int, scheme: str) -> None:
    page, asked, said = opened(browser, page_file, width, scheme)
    assert (asked, said) == ([], [])
    assert page.locator("html").get_attribute("data-drawn") == "8"
    assert page.locator(".plot canvas").count() == 8
    assert page.title() == "CaraServe: sample-base"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(13, 17, 23)")
    page.close()


def test_adapters_are_sorted_and_filtered(browser: Browser, page_file: Path) -> None:
    page, _, said = opened(browser, page_file, 1280, "light")
    names = page.locator("#adapters tbody tr td:first-child")
    page.locator("#adapters th").nth(1).click()
    assert names.first.inner_text() == "spell"  # rank 8, above 4 and none
    page.locator(".filter").fill("SPELL")
    assert next(name for name in names.all() if name.is_visible()).inner_text() == "spell"
    assert sum(name.is_visible() for name in names.all()) == 1
    assert said == []
    page.close()


def test_it_prints_in_light_colours(browser: Browser, page_file: Path) -> None:
    page, _, said = opened(browser, page_file, 1280, "dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert len(page.pdf()) > 10_000
    assert said == []
    page.close()


if __name__ == "__main__":  # python tests/report/test_browser.py FILE FOLDER: time it and take screenshots
    import sys

    file, folder = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        for width in (1280, 390):
            for scheme in ("light", "dark"):
                begin_s = time.perf_counter()
                page, asked, said = opened(chromium, file, width, scheme)
                took_s = time.perf_counter() - begin_s
                page.screenshot(path=folder / f"{width}-{scheme}.png", full_page=True)
                print(width, scheme, f"{took_s:.2f} s", asked, said)  # noqa: T201
