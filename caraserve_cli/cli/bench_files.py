"""The files that `caraserve bench` was asked to write. Knows no measuring."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from caraserve_cli.errors import OptionError, OutputError

if TYPE_CHECKING:
    from caraserve_cli.bench.bench_recipe import BenchRun
    from caraserve_cli.bench.gate import GateResult
    from caraserve_cli.bench.gated_run import GatedRun
    from caraserve_cli.bench.paper import PaperComparison
    from caraserve_cli.bench.recording import Recording


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchFiles:
    """One an option; None where it was not given."""

    record: Path | None
    json: Path | None
    markdown: Path | None
    html: Path | None
    junit: Path | None
    github_benchmark: Path | None

    @property
    def given(self) -> dict[str, Path]:
        """Option → file."""
        named = {f"--{field.name.replace('_', '-')}": getattr(self, field.name) for field in _FIELDS}
        return {option: path for option, path in named.items() if path is not None}

    @property
    def written(self) -> list[tuple[str, Path]]:
        """Option, and a file that it has written."""
        from caraserve_cli.bench.github_benchmark import SUFFIXES

        files = self.given
        name = files.pop("--github-benchmark", None)
        of_github = [] if name is None else [name.with_suffix(suffix) for suffix in SUFFIXES.values()]
        return [*files.items(), *(("--github-benchmark", path) for path in of_github)]

    @property
    def beside(self) -> list[tuple[str, Path]]:
        """What it is, and the file, of what a recipe may have to write beside a file that was given."""
        if self.json is None:
            return []
        suffixes = {"plot": ".svg", "trace": ".trace.json"}
        return [(f"the {what} beside --json", self.json.with_suffix(end)) for what, end in suffixes.items()]

    def check(self, read: Sequence[tuple[str, Path]]) -> None:
        """Refuse before the measurement what would fail after it, and one file for two things, of which only
        the later would be left.

        Args:
            read: what it is, and the file, of all that is read.

        Raises:
            OutputError: one of them cannot be written.
            OptionError: a file is read and written, or written twice.
        """
        for option, path in self.given.items():
            check_writable(path, option)
        for what, path in [*self.written, *self.beside]:
            check_writable(path, what)
        is_what = {path.resolve(): what for what, path in read}
        for what, path in [*self.beside, *self.written]:
            other = is_what.setdefault(path.resolve(), what)
            if other != what:
                raise OptionError(f"{what}: '{path}' is the file of {other} too; give each its own")

    def write_result(self, run: BenchRun) -> None:
        """Write what one run of a recipe gave.

        Raises:
            OutputError: a file cannot be written.
        """
        from caraserve_cli.bench.facts import write_json, write_text

        if self.json is not None:
            write_json(self.json, run.content)
            for suffix, content in run.beside.items():
                if isinstance(content, str):
                    write_text(self.json.with_suffix(suffix), content)
                else:
                    write_json(self.json.with_suffix(suffix), content)
        if self.markdown or self.html or self.github_benchmark:
            from caraserve_cli.bench.gated_run import record_results

            recording = record_results(run.recipe, [run.content], each_repeat=True)
            self._write_pages(recording, None, run.comparison, run.remarks)

    def write_gated(self, done: GatedRun) -> None:
        """Write what several runs of a recipe gave, and how it compares.

        Raises:
            OutputError: a file cannot be written.
        """
        from caraserve_cli.bench.facts import write_json
        from caraserve_cli.bench.gate_junit import gate_junit

        recording, gate = done.recording, done.gate
        if self.record is not None:
            write_json(self.record, recording.as_json(), "--record")
        if self.json is not None:
            write_json(self.json, recording.as_json() if gate is None else gate.as_json())
        if self.junit is not None and gate is not None:
            _write("--junit", self.junit, gate_junit(gate))
        self._write_pages(recording, gate, done.comparison)

    def _write_pages(
        self,
        recording: Recording,
        gate: GateResult | None,
        comparison: PaperComparison | None,
        remarks: Sequence[str] = (),
    ) -> None:
        """What a paper reports is not on the gate's pages, which are about a change."""
        import orjson

        from caraserve_cli.bench.gate_html import gate_html, recording_html
        from caraserve_cli.bench.gate_markdown import gate_markdown, recording_markdown
        from caraserve_cli.bench.github_benchmark import github_benchmark

        if self.markdown is not None:
            text = recording_markdown(recording, remarks, comparison) if gate is None else gate_markdown(gate)
            _write("--markdown", self.markdown, text.encode())
        if self.html is not None:
            text = recording_html(recording, remarks, comparison) if gate is None else gate_html(gate)
            _write("--html", self.html, text.encode())
        if self.github_benchmark is not None:
            for suffix, content in github_benchmark(recording).items():
                path = self.github_benchmark.with_suffix(suffix)
                _write("--github-benchmark", path, orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")


_FIELDS = dataclasses.fields(BenchFiles)


def check_writable(path: Path, option: str) -> None:
    """Refuse a file that could not be written.

    Raises:
        OutputError: it could not.
    """
    reason = None
    if path.is_dir():
        reason = "it is a folder"
    elif not path.parent.is_dir():
        reason = "its folder does not exist"
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        reason = "it is not permitted here"
    if reason is not None:
        raise OutputError(f"{option}: '{path}' cannot be written: {reason}")


def _write(option: str, path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise OutputError(f"{option}: '{path}' cannot be written: {error.strerror}") from error
