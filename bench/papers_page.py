"""The page of 10,000 papers in headless Chromium: from a keystroke to what is painted because of it.

Usage: python bench/papers_page.py            (writes bench/results/papers_page.json)
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright
from synthetic_papers import records

from thrifty.measure.hardware import hardware
from thrifty.papers.site import write_site
from thrifty.papers.status import Statuses

COUNT = 10_000
CHROMIUM = "/usr/bin/chromium"
SWITCHES = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
]  # fmt: skip
QUERIES = (
    "quantization",
    "a transformer",
    "nothing-like-it",
    '"large language models" edge',
    "(pruning OR sparsity) NOT attention",
    "-video low-bit kv",
)
CLOCK = """
(() => {
  window.keystrokes = [];
  // In the capturing phase, before the page's own listener; the second frame begins when the first has been painted.
  document.getElementById("query").addEventListener("input", () => {
    const began = performance.now();
    requestAnimationFrame(() => requestAnimationFrame(() => keystrokes.push(performance.now() - began)));
  }, { capture: true });
})()
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = records(COUNT)
        written = write_site(found, Statuses([], {}), Path(folder), scores={record.id: len(record.title) / 8 for record in found})
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=SWITCHES)
            page = browser.new_page(viewport={"width": 1280, "height": 1000})
            address = f"file://{written['file']}"
            page.goto(address)
            load = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
            times = [time for query in QUERIES for time in keystrokes(page, address, query)]
            version = browser.version
            browser.close()
    summary = {
        "hardware": hardware(),
        "chromium": version,
        "records": COUNT,
        "queries": list(QUERIES),
        "keystrokes": len(times),
        "median_ms": statistics.median(times),
        "p95_ms": statistics.quantiles(times, n=20)[-1],
        "max_ms": max(times),
        "load_ms": load,
        "bytes": written["bytes"],
    }
    path = Path(__file__).parent / "results" / "papers_page.json"
    path.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


def keystrokes(page: Page, address: str, query: str) -> list[float]:
    """Milliseconds of every letter of a query typed, and of every one taken away again, in a page that keeps nothing of other queries."""
    page.goto("about:blank")
    page.goto(address)
    page.wait_for_timeout(500)  # as a reader needs before the first letter
    page.evaluate(CLOCK)
    page.focus("#query")
    for typed, key in enumerate([*query, *["Backspace"] * len(query)], 1):
        page.keyboard.press("Space" if key == " " else key)
        page.wait_for_function("count => keystrokes.length === count", arg=typed)
    return page.evaluate("keystrokes")


if __name__ == "__main__":
    main()
