"""The page of a data check: whole in one file, safe, with the images of each finding."""

import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from read_page import Page

from clipgraft.data.check import check_dataset
from clipgraft.data.formats import load_dataset
from clipgraft.errors import UserError
from clipgraft.reporting.dataset_page import check_place, render_page, write_page
from contrast import faint_texts
from helpers import call, refused

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<script>alert(1)</script><img src=http://example.invalid/a> {{ 7 * 7 }}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images, two of them equal and one broken, and captions that break pages."""
    root = tmp_path / "A & B <set>"
    root.mkdir()
    captions = {"a.png": HOSTILE, "b.png": "A kite", "c.png": "A kite", "d.png": "كلب يجري على الشاطئ"}
    for seed, name in enumerate(captions):
        pixels = np.random.default_rng(min(seed, 2)).integers(0, 256, (400, 500, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)
    (root / "b.png").write_bytes(b"\x89PNG")
    rows = [{"file_name": name, "text": text, "split": "train"} for name, text in captions.items()]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


@pytest.fixture
def html(folder: Path) -> str:
    return render_page(check_dataset(load_dataset(folder)))


def test_page_names_source_counts_and_findings(html: str) -> None:
    text = Page(html).text
    for part in (
        "A & B <set>",
        "4 images with 4 captions: 4 train, 0 val, 0 test.",
        "splits a split column or field",
        "1 photograph cannot be opened",
        "2 photographs have the same bytes (1 group)",
        "c.png (train) = d.png (train)",
        "2 images share 1 caption",
        "1 caption with JSON, HTML or Markdown",
        "recall@1 cannot pass",
    ):
        assert part in text, part


def test_captions_stay_text_and_nothing_is_fetched(html: str) -> None:
    page = Page(html)
    assert page.open == []
    assert HOSTILE in page.text
    assert page.all("script") == page.all("link") == page.all("a") == []
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.all("img"))
    policy = next(tag["content"] for tag in page.all("meta") if "http-equiv" in tag)
    assert policy.startswith("default-src 'none'; img-src data:")


def test_images_are_small_and_a_broken_one_says_why(html: str) -> None:
    images = Page(html).all("img")
    assert images
    for image in images:
        with Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))) as shown:
            assert shown.size == (int(image["width"]), int(image["height"])) == (320, 256)
    assert html.count('class="failure"') == 3  # a finding, an image of a shared caption, and a sample
    assert "expected a JPEG, PNG, WebP, AVIF or HEIC image" in Page(html).text


def test_page_without_findings_says_so(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("A brown dog runs on the beach .")
    assert "Nothing odd was found." in render_page(check_dataset(load_dataset(tmp_path)))


def test_own_page_is_replaced_and_no_other_file(folder: Path, tmp_path: Path) -> None:
    check = check_dataset(load_dataset(folder))
    page = tmp_path / "new" / "sheet.html"
    write_page(check, page)
    write_page(check, page)
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    with pytest.raises(UserError, match=r"mine.html is there and no sheet of `data check`"):
        check_place(tmp_path / "mine.html")
    with pytest.raises(UserError, match=r"metadata.jsonl: expected the name of a page"):
        check_place(folder / "metadata.jsonl")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(UserError, match=r"name another file"):
        check_place(tmp_path / "folder.html")


def test_command_writes_the_page(folder: Path, tmp_path: Path, capsys) -> None:
    assert call("data", "check", folder, "--sheet", tmp_path / "sheet.html", "--json") == 0
    shown = capsys.readouterr()
    assert len(json.loads(shown.out)["samples"]) == 4
    assert "samples and findings" in shown.err
    assert "<title>A &amp; B &lt;set&gt; - clipgraft</title>" in (tmp_path / "sheet.html").read_text()
    assert "expected the name of a page" in refused(capsys, "data", "check", folder, "--sheet", "sheet.txt")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_page_fits_screens_and_stands_out_in_light_and_dark(html: str, tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    (tmp_path / "sheet.html").write_text(html)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened, said, colours = browser.new_page(), [], set()
        opened.on("console", lambda message: said.append(message.text))
        opened.on("request", lambda request: said.append(request.url) if "http" in request.url[:4] else None)
        opened.goto((tmp_path / "sheet.html").as_uri())
        for scheme in ("light", "dark"):
            opened.emulate_media(color_scheme=scheme)
            colours.add(opened.evaluate("getComputedStyle(document.body).color"))
            assert faint_texts(opened) == []
            for width in (390, 1440):
                opened.set_viewport_size({"width": width, "height": 900})
                assert opened.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()
    assert said == []
    assert len(colours) == 2
