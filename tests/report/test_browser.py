"""report.html in a real Chromium: it draws, loads nothing, runs nothing of what rows say, and says nothing on
the console.

Needs Chromium on the machine. CARASERVE_BROWSER=required, as CI sets it, makes its absence a failure.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, Dialog, Page, Playwright, sync_playwright

from caraserve_cli.report.html import write_html
from caraserve_cli.report.run_facts import RunFacts
from caraserve_cli.report.run_report import build_report
from caraserve_cli.report.summary import RunSummary
from tests.cli.command import SAMPLE, write_rows
from tests.cli.forked import run_forked
from tests.report.test_run_trace import step

HOSTILE = """</script><script>alert(1)</script><img src=x onerror=alert(2)>\" onclick='alert(3)"""
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking")
NO_BROWSER = (
    "NOT TESTED: report.html in a browser, for there is no Chromium; `apt-get install chromium` or "
    "`.venv/bin/playwright install chromium`"
)


class Seen(NamedTuple):
    """What a page asked for beside itself, said on the console, and asked the user."""

    asked: list[str]
    said: list[str]
    dialogs: list[str]


def find_chromium(playwright: Playwright) -> str | None:
    """The machine's own, or the one that playwright has installed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    own = playwright.chromium.executable_path
    return found or (own if Path(own).exists() else None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        executable = find_chromium(playwright)
        if executable is None:
            assert os.environ.get("CARASERVE_BROWSER") != "required", NO_BROWSER
            pytest.skip(NO_BROWSER)
        browser = playwright.chromium.launch(executable_path=executable, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def page_file(make_row: Callable[..., dict[str, object]], facts: RunFacts, tmp_path: Path) -> Path:
    """A report with every section, in which all that a user names is hostile."""
    summary = RunSummary()
    for number in range(300):
        adapter = (None, "spell", HOSTILE)[number % 3]
        summary.add_answer(
            make_row(adapter, id=f"{HOSTILE}{number}", latency_ms=35.0 + number, slack_ms=200.0 - number)
        )
    summary.add_error("invalid_json", carried_bound=False)
    summary.failures.add_row({"line": 7, "id": HOSTILE, "code": "invalid_json", "message": HOSTILE})
    for number in range(50):
        summary.on_step(step(number, num_running=number % 7, adapter_pool_used_bytes=1, adapter_pool_bytes=2))
    return write_html(build_report(summary, facts, {"spell": 8, HOSTILE: 4}), tmp_path)


def opened(browser: Browser, file: Path, width: int = 1280, scheme: str = "light") -> tuple[Page, Seen]:
    """The page once it is drawn; `Seen` goes on to be filled."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    seen = Seen([], [], [])

    def dismiss(dialog: Dialog) -> None:
        seen.dialogs.append(dialog.message)
        dialog.dismiss()

    def note(url: str) -> None:
        if url != file.as_uri() and not url.startswith("data:"):
            seen.asked.append(url)

    page.on("request", lambda request: note(request.url))
    page.on("console", lambda message: seen.said.append(message.text))
    page.on("pageerror", lambda error: seen.said.append(str(error)))
    page.on("dialog", dismiss)
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-drawn]", state="attached")
    return page, seen


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_draws_all_and_loads_nothing(browser: Browser, page_file: Path, width: int, scheme: str) -> None:
    page, seen = opened(browser, page_file, width, scheme)
    assert page.locator("html").get_attribute("data-drawn") == "8"
    assert page.locator(".plot canvas").count() == 8
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(13, 17, 23)")
    assert seen == Seen([], [], [])
    page.close()


def test_adapters_are_sorted_and_filtered(browser: Browser, page_file: Path) -> None:
    page, seen = opened(browser, page_file)
    names = page.locator("#adapters tbody tr td:first-child")
    page.locator("#adapters th").nth(1).click()
    assert names.first.inner_text() == "spell"  # rank 8, above 4 and none
    page.locator(".filter").fill("SPELL")
    assert next(name for name in names.all() if name.is_visible()).inner_text() == "spell"
    assert sum(name.is_visible() for name in names.all()) == 1
    assert seen == Seen([], [], [])
    page.close()


def test_what_rows_say_is_text(browser: Browser, page_file: Path) -> None:
    page, seen = opened(browser, page_file)
    assert page.locator("script").count() == 3, "data, uPlot, and the page's own"
    assert page.locator("body img").count() == 0
    assert page.locator("[onclick], [onerror]").count() == 0
    assert page.locator(".slowest td:first-child").first.inner_text() == f"{HOSTILE}299"
    assert page.locator("#adapters").get_by_text(HOSTILE, exact=True).count() == 1
    assert page.locator(".failures").get_by_text(f"{HOSTILE}: {HOSTILE}").count() == 1
    for cell in page.locator(f"td:has-text({HOSTILE[:12]!r})").all()[:5]:
        cell.click()
    assert seen == Seen([], [], [])
    page.close()


def test_a_run_with_hostile_names_is_shown_as_it_is(browser: Browser, tmp_path: Path) -> None:
    name = HOSTILE.replace("/", "")
    shutil.copytree(SAMPLE / "adapters" / "upper", tmp_path / "adapters" / name)
    rows: list[dict[str, object]] = [
        {"id": HOSTILE, "prompt": HOSTILE, "adapter": name, "max_tokens": 2, "deadline_ms": 60_000},
        {"id": f"{HOSTILE}2", "prompt": "x", "adapter": HOSTILE},
    ]
    requests = write_rows(tmp_path / "<img onerror=alert(4)>.jsonl", rows)
    out = tmp_path / "out"
    common = ("--base", SAMPLE / "base", "--adapters", tmp_path / "adapters")
    ended = run_forked("run", *common, "--out", out, requests)
    assert ended.returncode == 3, ended.stderr
    page, seen = opened(browser, out / "report.html")
    assert page.locator(".slowest td:first-child").inner_text() == HOSTILE
    assert page.locator("#adapters td:first-child").inner_text() == name
    assert HOSTILE in page.locator(".failures").inner_text()
    assert page.locator("script").count() == 3
    assert seen == Seen([], [], [])
    page.close()


@pytest.mark.parametrize("failed", [0, 3])
def test_without_answers_it_says_so(browser: Browser, facts: RunFacts, tmp_path: Path, failed: int) -> None:
    summary = RunSummary()
    for line in range(failed):
        summary.add_error("invalid_json", carried_bound=False)
        summary.failures.add_row({"line": line, "id": None, "code": "invalid_json", "message": "no JSON"})
    page, seen = opened(browser, write_html(build_report(summary, facts, {}), tmp_path))
    assert page.locator("html").get_attribute("data-drawn") == "0"
    assert page.locator(".plot").count() == 0, "no empty plot"
    text = page.locator("main").inner_text()
    assert "No request was answered" in text
    assert "No step was computed" in text
    assert ("no JSON" in text) == (failed > 0)
    assert seen == Seen([], [], [])
    page.close()


def test_it_prints_in_light_colours(browser: Browser, page_file: Path) -> None:
    page, seen = opened(browser, page_file, scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert len(page.pdf()) > 10_000
    assert seen == Seen([], [], [])
    page.close()
