"""`thrifty papers`: every command on the shipped week, its faults, and the lines that the documentation shows."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.papers.samples import DIGEST
from thrifty.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "papers.md"
LINES = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    for line in block.splitlines()
    if line.startswith("thrifty")
]


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty library of one's own, and a folder to work in."""
    monkeypatch.setenv("THRIFTY_PAPERS", str(tmp_path / "own"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "own"


def said(capfd: pytest.CaptureFixture, *words: str) -> str:
    assert main(["papers", *words]) == 0, capfd.readouterr().err
    return capfd.readouterr().out


def refused(capfd: pytest.CaptureFixture, *words: str) -> str:
    assert main(["papers", *words]) == 2
    found = capfd.readouterr()
    assert not found.out and "Traceback" not in found.err
    return " ".join(found.err.split())


def test_the_round_trip_is_to_the_byte(capfd: pytest.CaptureFixture) -> None:
    assert said(capfd, "import", str(DIGEST)) == "digest of 2025-06-13: 0 new, 0 changed, 132 known already\n"
    said(capfd, "digest", "--layout", "classic", "--out", "again.md")
    assert Path("again.md").read_bytes() == DIGEST.read_bytes() and len(DIGEST.read_bytes()) == 235_634
    assert main(["papers", "digest", "--layout", "classic", "--day", "2025-06-13"]) == 0
    assert capfd.readouterr().out.encode() == DIGEST.read_bytes()


def test_importing_twice_changes_nothing(capfd: pytest.CaptureFixture, own: Path) -> None:
    text = DIGEST.read_text().replace("# 2025-06-13", "# 2025-06-20", 1).replace("2506.10967v1", "2506.77777v1", 1)
    Path("week.md").write_text(text)
    first = json.loads(said(capfd, "import", "week.md", "--json"))
    assert (first["day"], first["new"], len(first["known"])) == ("2025-06-20", ["2506.77777"], 131)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in own.rglob("*.json")}
    assert json.loads(said(capfd, "import", "week.md", "--json"))["new"] == []
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in own.rglob("*.json")} == before and len(before) == 2


def test_a_bad_digest_names_file_line_and_field_and_writes_nothing(capfd: pytest.CaptureFixture, own: Path) -> None:
    Path("bad.md").write_text(DIGEST.read_text().replace(">2025-06-12", ">12 June", 1))
    assert "bad.md, line 142, date: expected '>YYYY-MM-DD', found '>12 June'; nothing was imported" in refused(capfd, "import", "bad.md")
    Path("bytes.md").write_bytes(b"\xff\xfe")
    assert "bytes.md cannot be read as a digest: it is not UTF-8" in refused(capfd, "import", "bytes.md")
    assert "missing.md cannot be read" in refused(capfd, "import", "missing.md")
    assert not own.exists()


@pytest.mark.parametrize("form", ["markdown", "html", "json", "bibtex", "csv"])
def test_every_form_of_the_digest(form: str, capfd: pytest.CaptureFixture) -> None:
    text = said(capfd, "digest", "--format", form)
    checks = {
        "markdown": lambda: text.startswith("# Papers up to 2025-06-13\n") and "implemented" in text,
        "html": lambda: text.startswith("<!doctype html>"),
        "json": lambda: len(json.loads(text)["papers"]) == 132,
        "bibtex": lambda: text.count("@misc{") == 132,
        "csv": lambda: len(list(csv.DictReader(io.StringIO(text)))) == 132,
    }
    assert checks[form]()


def test_a_digest_of_some_days(capfd: pytest.CaptureFixture) -> None:
    found = json.loads(said(capfd, "digest", "--since", "2025-06-11", "--until", "2025-06-11", "--format", "json"))
    assert found["day"] == "2025-06-11" and {paper["published"] for paper in found["papers"]} == {"2025-06-11"}


def test_faults_of_the_digest(capfd: pytest.CaptureFixture) -> None:
    assert "--layout classic is Markdown only" in refused(capfd, "digest", "--layout", "classic", "--format", "csv")
    assert "there is no digest of 2025-01-01; there are: 2025-06-13" in refused(capfd, "digest", "--day", "2025-01-01")
    assert "--day yesterday: that is no day" in refused(capfd, "digest", "--day", "yesterday")
    assert "give one or the other" in refused(capfd, "digest", "--day", "2025-06-13", "--since", "2025-06-12")
    assert "is a folder" in refused(capfd, "digest", "--out", ".")


def test_list_and_its_filters(capfd: pytest.CaptureFixture) -> None:
    assert said(capfd, "list").rstrip().endswith("132 papers")
    found = json.loads(said(capfd, "list", "--module", "kv", "--fit", "core", "--json"))
    assert {paper["name"] for paper in found} >= {"MoQAE", "Graph-KV"} and all(paper["fit"] == "core" for paper in found)
    done = json.loads(said(capfd, "list", "--status", "implemented", "--json"))
    assert {"AWP", "BAQ"} <= {paper["name"] for paper in done} and all(paper["status"]["figure"] for paper in done)
    assert "--module cache: there is none" in refused(capfd, "list", "--module", "cache")
    assert said(capfd, "list", "--since", "2030-01-01") == "0 papers\n"


def test_search(capfd: pytest.CaptureFixture) -> None:
    found = json.loads(said(capfd, "search", '"low-bit" -diffusion NOT video', "--json"))
    assert found and all("low-bit" in (paper["title"] + paper["abstract"]).lower() for paper in found)
    assert "place 7" in refused(capfd, "search", "graph (kv")
    assert said(capfd, "search", "--", "-sparse -a -the -of") == "0 papers\n"


def test_show(capfd: pytest.CaptureFixture) -> None:
    text = said(capfd, "show", "awp")
    assert "AWP: Activation-Aware Weight Pruning" in text and "implemented" in text and "perplexity" in text
    values = json.loads(said(capfd, "show", "2506.10205v1", "--json"))
    assert values["status"]["test"] == "tests/weights/test_awp.py" and values["why"].startswith("word: sparse, pruning")
    assert "there is no paper 'nothing'" in refused(capfd, "show", "nothing")


def test_stats(capfd: pytest.CaptureFixture) -> None:
    found = json.loads(said(capfd, "stats", "--json"))
    assert found["fit"] == {"core": 41, "near": 26, "far": 58, "none": 7} and sum(found["module"].values()) == 132
    text = said(capfd, "stats")
    assert "implemented" in text and "quantize" in text


def test_graph(capfd: pytest.CaptureFixture) -> None:
    assert said(capfd, "graph").startswith("flowchart LR\n")
    said(capfd, "graph", "--out", "lineage.mmd")
    assert "SparseSSM" in Path("lineage.mmd").read_text()
    assert ["Wanda", "AWP"] in json.loads(said(capfd, "graph", "--json"))["edges"]


def test_site(capfd: pytest.CaptureFixture) -> None:
    assert json.loads(said(capfd, "site", "--out", "page", "--json"))["papers"] == 132
    assert "AWP: Activation-Aware" in Path("page/index.html").read_text()


def test_a_bad_record_of_ones_own_is_named(capfd: pytest.CaptureFixture, own: Path) -> None:
    place = own / "records" / "2506"
    place.mkdir(parents=True)
    (place / "2506.00001.json").write_text('{\n  "id": "2506.00001",\n  "version": 0\n}\n')
    assert "2506.00001.json, line 3, version: " in refused(capfd, "list")


def test_the_page_shows_every_command() -> None:
    from thrifty.cli.papers import app

    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert names == {shlex.split(line)[2] for line in LINES}


@pytest.mark.parametrize("line", [line for line in LINES if " fetch" not in line])
def test_the_lines_of_the_page_run(line: str, capfd: pytest.CaptureFixture) -> None:
    shutil.copy(DIGEST, "2025-06-13.md")
    said(capfd, *shlex.split(line)[2:])
