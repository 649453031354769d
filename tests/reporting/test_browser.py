"""The page in a real browser: no error in the console, no request, and nothing wider than the screen."""

import json
import re
import shutil
import subprocess

import pytest
from example_run import full_log_rows, picture_row, write_evaluation, write_log, write_pictures

from clipgraft.reporting.report import compare, report
from contrast import faint_texts

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--v=0"),
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
THE_BROWSERS_OWN = re.compile(r"https?://([a-z0-9-]+\.)*(google|googleapis|gvt1)\.com/")
"""What Chromium asks its maker for, whatever page it shows; here it gets no answer."""
MEASURE = """<script>
const root = document.documentElement;
document.title = root.scrollWidth > root.clientWidth ? "overflows" : "fits " + innerWidth;
</script>"""
PROMPTS = (
    "كلب يجري على الشاطئ عند غروب الشمس",
    "🐕‍🦺 on the 🏖️ at 🌅",
    "</p><script>document.title = 'broken in'; fetch('http://example.invalid/')</script><img src=http://example.invalid/a>",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]


@pytest.fixture
def page(run_dir):
    """A page with everything on it, hostile prompts among it."""
    rows = [
        picture_row(f"{index}-{column}.png", prompt, column=column)
        for index, prompt in enumerate(PROMPTS)
        for column in ("teacher", "before", "after", "refined")
    ]
    write_pictures(run_dir / "generate", rows)
    write_log(run_dir / "finetune" / "log.jsonl", full_log_rows(2, 20))
    write_evaluation(run_dir / "evaluate")
    return report(run_dir)


def open_in_browser(page, folder, *, width=1440, options=("--dump-dom",)):
    """Return the page as the browser has it, what the console said, and the addresses it asked for."""
    net_log = folder / "net.json"
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--log-net-log={net_log}"]
    command += [f"--window-size={width},2000", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    asked_for = re.findall(r'"url":"((?:https?|wss?|ftp):[^"]*)"', net_log.read_text(errors="replace"))
    addresses = {address for address in asked_for if not THE_BROWSERS_OWN.match(address)}
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, console, addresses


def test_no_request_leaves_the_page_and_the_console_is_quiet(page, tmp_path):
    dom, console, addresses = open_in_browser(page, tmp_path)
    assert console == []
    assert addresses == set()
    assert "<title>demo - clipgraft</title>" in dom
    assert dom.count("Slide between before and after") == 3 + 1  # one in the script itself
    for prompt in PROMPTS[:2]:
        assert prompt in dom


def test_page_that_compares_is_quiet_too(page, tmp_path):
    other = page.parent.parent / "other"
    shutil.copytree(page.parent, other)
    compared = compare([page.parent, other], tmp_path)
    _, console, addresses = open_in_browser(compared, tmp_path)
    assert console == []
    assert addresses == set()


@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_is_wider_than_the_screen(page, tmp_path, width):
    assert measured_title(page, tmp_path, width) == f"fits {width}"


def test_every_text_stands_out_in_light_and_in_dark(page):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        opened, colours = browser.new_page(), set()
        opened.goto(page.as_uri())
        for scheme in ("light", "dark"):
            opened.emulate_media(color_scheme=scheme)
            colours.add(opened.evaluate("getComputedStyle(document.body).color"))
            assert faint_texts(opened) == []
        browser.close()
    assert len(colours) == 2


def test_page_without_images_or_numbers_fits_a_phone(run_dir, tmp_path):
    shutil.rmtree(run_dir / "generate")
    evaluation = write_evaluation(run_dir / "evaluate", pictures=[])
    nothing = {"value": None, "interval": None, "note": "nothing to measure"}
    rows = {key: [row | nothing for row in evaluation[key]] for key in ("figures", "differences")}
    write_evaluation(run_dir / "evaluate", pictures=[], **rows)
    assert measured_title(report(run_dir), tmp_path, 390) == "fits 390"


def measured_title(page, folder, width):
    """Whether a page fits a frame of some width, as `MEASURE` says it."""
    html = page.read_text()
    # Measured by a script of the test's own, which the page's policy would forbid.
    measured = folder / "measured.html"
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', html).group(0)
    framed = json.dumps(html.replace(policy, "").replace("</body>", MEASURE + "</body>")).replace(
        "</", "<\\/"
    )
    # A frame is as narrow as it is told to be; a window is never narrower than 500 pixels.
    measured.write_text(
        f"<iframe width={width} height=2000 style='border:0'></iframe><script>"
        f"const frame = document.querySelector('iframe'); frame.srcdoc = {framed};"
        "frame.onload = () => { document.title = frame.contentDocument.title }</script>"
    )
    dom, _, _ = open_in_browser(measured, folder, width=1500)
    return re.search("<title>(.*?)</title>", dom).group(1)
