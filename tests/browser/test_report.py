"""The page of `rpo report` in a real browser: it asks for nothing, fits a phone, and axe finds no fault.

`make test-report`: needs Chromium and, in .venv/axe, axe-core (https://github.com/dequelabs/axe-core).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT
from test_compare import beside, drawn

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = ROOT / ".venv/axe/axe_playwright_python/axe.min.js"
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
LOOKS = {"light": "1", "dark": "0"}  # Chromium's numbers of the colour schemes
PHONE = 360  # CSS pixels
# Run in the page; what it finds goes into an element that --dump-dom shows.
CHECK = """
axe.run().then(found => {
  const told = document.createElement("pre");
  told.id = "found";
  told.textContent = JSON.stringify({
    violations: found.violations.map(v => ({id: v.id, impact: v.impact,
      at: v.nodes.slice(0, 3).map(n => n.html.slice(0, 200))})),
    passes: found.passes.map(p => p.id), ink: getComputedStyle(document.body).color});
  document.body.append(told);
});
"""
# The page in a frame as wide as a phone says how wide its content is.
FRAME = """<!DOCTYPE html><html lang="en"><title>phone</title><body><iframe src="page.html" title="page"
 width="{width}" height="800" onload='const root = this.contentDocument.documentElement;
 document.title = "content " + root.scrollWidth + " of " + root.clientWidth;'></iframe></body></html>"""


def browse(page: Path, *arguments: str) -> str:
    """What the browser made of a page."""
    assert BROWSER is not None, "no Chromium is installed: apt-get install chromium"
    home = page.parent / "profile"
    command = [BROWSER, *QUIET, f"--user-data-dir={home}", *arguments, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout


def requests_of(log: Path) -> list[str]:
    """What a page that is a file asked for, by a network log: not the file, nor what the browser asks for."""
    found: dict[str, Any] = json.loads(log.read_text())
    asked = [event.get("params", {}) for event in found["events"]]
    own = [each for each in asked if each.get("network_isolation_key", "").startswith("file:")]
    return sorted({each["url"] for each in own if "url" in each and not each["url"].startswith("file:")})


def unguarded(page: Path) -> str:
    """The page without the policy that forbids it to load anything."""
    text, count = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    assert count == 1
    return text


@pytest.fixture
def page(drawn: str, tmp_path: Path) -> Path:
    (tmp_path / "page.html").write_text(drawn)
    return tmp_path / "page.html"


def test_the_page_is_shown_whole_and_asks_for_nothing(page: Path) -> None:
    log = page.parent / "net.json"
    page.write_text(unguarded(page))
    shown = browse(page, f"--log-net-log={log}")
    assert shown.count("<svg") == page.read_text().count("<svg") > 6
    assert "Samples side by side" in shown and "Manifests" in shown
    assert requests_of(log) == []
    # The same log sees what a page asks for.
    other = page.parent / "other.html"
    other.write_text('<!DOCTYPE html><title>x</title><img src="http://127.0.0.1:9/seen.png">')
    browse(other, f"--log-net-log={log}")
    assert requests_of(log) == ["http://127.0.0.1:9/seen.png"]


@pytest.mark.parametrize("look", LOOKS)
def test_axe_finds_no_fault(page: Path, look: str) -> None:
    checked = page.with_name("checked.html")
    scripts = f"<script>{AXE.read_text()}</script><script>{CHECK}</script>"
    checked.write_text(unguarded(page).replace("</body>", f"{scripts}</body>"))
    scheme = f"--blink-settings=preferredColorScheme={LOOKS[look]}"
    shown = browse(checked, scheme, "--virtual-time-budget=60000", "--timeout=60000")
    said = re.search(r'<pre id="found">(.*?)</pre>', shown, flags=re.S)
    assert said is not None, shown[-500:]
    found = json.loads(unescape(said[1]))
    assert found["ink"] == {"light": "rgb(27, 27, 31)", "dark": "rgb(236, 236, 241)"}[look]
    assert "color-contrast" in found["passes"]
    assert found["violations"] == []


def test_the_page_is_no_wider_than_a_phone(page: Path) -> None:
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.format(width=PHONE))
    shown = browse(frame, "--allow-file-access-from-files", "--virtual-time-budget=5000")
    said = re.search(r"<title>content (\d+) of (\d+)</title>", shown)
    assert said is not None, shown[:500]
    assert int(said[1]) <= int(said[2]) <= PHONE
