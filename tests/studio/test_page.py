"""The page in a real Chromium, from first prompt to hostile caption; nothing but its own origin is asked."""

import pytest
from PIL import Image

from browser import until, view
from contrast import contrast_of, faint_texts
from helpers import image_request

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>\"'`${alert(3)} & a dog"
LONG = 150
VIEWS = ("generate", "compare", "grid", "gallery", "search", "training")
pytestmark = [pytest.mark.slow, pytest.mark.allow_hosts(["127.0.0.1"])]


def generate(page, steps=3, **fields):
    page.fill("#steps", str(steps))
    for name, value in fields.items():
        page.fill(f"#{name}", value)
    page.click("#submit")


def is_done(page, count):
    until(page, "document.getElementById('job-progress').classList.contains('done')")
    until(page, f"document.querySelectorAll('#images .frame img').length >= {count}")
    until(
        page, "[...document.querySelectorAll('#images img')].every(i => i.loading === 'lazy' || i.complete)"
    )


def test_a_prompt_is_read_while_typed_and_sent_by_keyboard(page, service):
    page.fill("#prompt", "A dog runs on the beach with a zebra")
    until(page, "document.getElementById('prompt-reading').textContent.includes('vocabulary: zebra')")
    page.fill("#prompt", "A dog runs " * 60)
    until(page, "document.getElementById('prompt-reading').textContent.includes(' of 231 tokens')")
    page.click("#more summary")
    page.select_option("#long-prompts", "cut")
    until(page, "document.getElementById('prompt-reading').textContent.includes('cut off: ')")
    page.fill("#steps", "3")
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    is_done(page, 1)
    assert "1 of 1 generated" in page.inner_text("#job-text")
    settings = service.queue.history()[0].settings
    assert (settings["num_inference_steps"], settings["prompt_syntax"]) == (3, "weighted")
    until(page, "document.getElementById('estimate').textContent === '1 image'")


def test_a_refusal_is_seen_wherever_the_page_is_scrolled_to(page):
    page.click("#more summary")
    generate(page, 150, width="1024", height="1024", **{"num-images": "16"})
    page.wait_for_selector("#notice:visible")
    assert "times what one job may ask for" in page.inner_text("#notice")
    top = page.evaluate("document.getElementById('notice').getBoundingClientRect().top")
    assert 0 < top < 300


def test_compare_lays_two_images_of_one_seed_over_each_other(page, service):
    view(page, "compare")
    generate(page, seed="5")
    is_done(page, 3)
    page.wait_for_selector(".slide img")
    assert {row.settings["seed"] for row in service.queue.history()} == {5}
    assert page.inner_text(".slide .tag.left") == "tiny/before"
    assert page.inner_text(".slide .tag.right") == "tiny/after"
    page.focus(".slide input")
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert page.evaluate("document.querySelector('.slide').style.getPropertyValue('--cut')") == "60%"
    page.select_option("#slide-0", label="tiny/teacher")
    assert page.inner_text(".slide .tag.left") == "tiny/teacher"


def test_a_grid_says_how_much_it_is_and_labels_rows_and_columns(page):
    view(page, "grid")
    page.fill("#row-values", "1\n2")
    page.fill("#column-values", "1\n2\n4")
    page.fill("#steps", "2")
    until(page, "document.getElementById('estimate').textContent.startsWith('6 images')")
    page.click("#submit")
    is_done(page, 6)
    assert page.locator("table.grid thead th[scope=col]").all_inner_texts() == [
        "CFG 1",
        "CFG 2",
        "CFG 4",
    ]
    assert page.locator("table.grid tbody th").all_inner_texts() == ["seed 1", "seed 2"]
    assert page.is_disabled("#seed")


def test_cancel_ends_the_job_and_says_so(page, service):
    page.click("#more summary")
    generate(page, LONG, width="256", height="256")
    page.wait_for_selector("#cancel:visible")
    page.click("#cancel")
    until(page, "document.getElementById('job-text').textContent === 'Cancelled.'")
    assert service.queue.jobs(1)[0].state == "cancelled"


def test_a_job_survives_a_reload_of_the_page(page, service):
    page.click("#more summary")
    generate(page, LONG, width="192", height="192")
    until(page, "/step [1-9]/.test(document.getElementById('job-text').textContent)")
    page.wait_for_selector("#images img[src*=preview]")
    page.reload()
    until(page, "/Generating|generated/.test(document.getElementById('job-text').textContent)")
    is_done(page, 1)
    assert [job.state for job in service.queue.jobs(9)] == ["done"]


def test_settings_are_loaded_back_from_a_downloaded_image(page, tmp_path):
    generate(page, 4, seed="18446744073709551615", prompt="A red ball 犬")
    is_done(page, 1)
    page.click("#images button")
    with page.expect_download() as download:
        page.click("#detail-download")
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    assert path.name == "a-red-ball-犬_seed18446744073709551615.png"
    page.keyboard.press("Escape")
    for field, value in (("prompt", "other"), ("seed", "1"), ("steps", "9")):
        page.fill(f"#{field}", value)
    page.set_input_files("#load-file", path)
    until(page, "document.getElementById('prompt').value === 'A red ball 犬'")
    assert page.input_value("#seed") == "18446744073709551615"
    assert page.input_value("#steps") == "4"
    assert page.input_value("#model") == "tiny/after"
    foreign = tmp_path / "foreign.png"
    Image.new("RGB", (20, 20)).save(foreign)
    with page.expect_response("**/v1/images/settings") as answer:
        page.set_input_files("#load-file", foreign)
    assert answer.value.status == 422
    page.wait_for_selector("#notice:visible")
    assert "does not hold its settings" in page.inner_text("#notice")
    exif = Image.Exif()
    text = "a (red:1.2) boat\nSteps: 9, Sampler: Euler, CFG scale: 6, Seed: 3, Model: dreamy"
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode("utf-16-be")
    Image.new("RGB", (20, 20)).save(tmp_path / "a1111.jpg", exif=exif)
    page.set_input_files("#load-file", tmp_path / "a1111.jpg")
    until(page, "document.getElementById('prompt').value === 'a (red:1.2) boat'")
    assert [page.input_value(f"#{field}") for field in ("steps", "scheduler", "prompt-syntax")] == [
        *("9", "euler", "weighted")
    ]
    assert "not read: model dreamy" in page.inner_text("#notice")


def test_a_hostile_caption_stays_text_everywhere(page, service):
    job_id = service.submit("a", "generate", [("tiny/after", image_request(HOSTILE, num_inference_steps=1))])
    service.wait(job_id).result(timeout=30)
    view(page, "gallery")
    page.wait_for_selector("#gallery-images button")
    assert page.inner_text("#gallery-images .hint") == HOSTILE
    assert page.locator("#gallery-images .hint").nth(1).inner_text() == "tiny/after · seed 0"
    page.click("#gallery-images button")
    assert page.inner_text("#detail-prompt") == HOSTILE
    page.click("#detail-use")
    assert page.input_value("#prompt") == HOSTILE
    view(page, "gallery")
    page.fill("#gallery-words", "<script> nope")
    page.wait_for_selector("#gallery-empty:visible")


def test_search_finds_images_and_runs_show_loss_and_report(page):
    view(page, "search")
    page.wait_for_selector("#search-run option", state="attached")
    page.fill("#caption", "A red ball lies in the park")
    page.click("#caption-search button")
    page.wait_for_selector("#search-results li")
    assert page.locator("#search-results h2").all_inner_texts() == ["Before fine-tuning", "After fine-tuning"]
    view(page, "training")
    page.wait_for_selector("svg.chart path.batch", state="attached")
    assert "finished" in page.inner_text("#run-list")
    frame = page.frame_locator("iframe")
    assert frame.locator("h1").inner_text() == "tiny"
    frame.get_by_role("button", name="Slide between before and after").first.click()
    assert frame.get_by_role("slider").first.input_value() == "50"


def test_every_text_stands_out_in_light_and_in_dark(page):
    generate(page, prompt="A red ball")
    is_done(page, 1)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for name in VIEWS:
            view(page, name)
            assert faint_texts(page) == []


def test_edges_of_fields_stand_out_in_light_and_in_dark(page):
    """WCAG 2.2, 1.4.11: 3 to 1 against what is around a field."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        edge, around = page.evaluate(
            "[getComputedStyle(document.getElementById('seed')).borderTopColor,"
            " getComputedStyle(document.body).backgroundColor]"
            ".map(color => color.match(/\\d+/g).map(Number))"
        )
        assert contrast_of(edge, around) >= 3


def test_the_button_stays_in_sight_below_a_long_form(page):
    for name in ("start-from", "models-part", "more"):
        page.click(f"#{name} summary")
    page.focus("#prompt")
    page.evaluate("scrollTo(0, 0)")
    box, height = page.locator("#submit").bounding_box(), page.viewport_size["height"]
    assert box["y"] + box["height"] <= height
    page.focus("#clip-skip")
    field = page.locator("#clip-skip").bounding_box()
    assert field["y"] + field["height"] <= page.locator("#submit").bounding_box()["y"]


def test_a_refused_field_is_named_as_on_the_page(page):
    page.fill("#steps", "9999")
    until(page, "document.getElementById('estimate').textContent.startsWith('Steps: ')")
    assert "warn" in page.get_attribute("#estimate", "class")
    page.fill("#steps", "3")
    until(page, "document.getElementById('estimate').textContent === '1 image'")
    assert "warn" not in page.get_attribute("#estimate", "class")


def test_models_and_images_say_what_they_are(page):
    assert page.inner_text("#model-what") == "CLIP after fine-tuning"
    generate(page)
    is_done(page, 1)
    page.click("#images button")
    until(page, "document.querySelector('[data-name=Size]').textContent === '64 × 64'")
    close = page.locator("#detail .close")
    ground = close.evaluate("button => getComputedStyle(button).backgroundColor")
    assert ground == page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.evaluate("document.getElementById('detail').scrollTop = 1000")
    close.click()
    assert not page.locator("#detail").is_visible()


def test_everything_has_a_name_for_a_screen_reader(page):
    for name in VIEWS:
        view(page, name)
        unnamed = page.evaluate(
            "[...document.querySelectorAll('input, select, textarea, button, a, img, iframe')]"
            ".filter(e => e.offsetParent && !(e.labels?.length || e.ariaLabel || e.alt || e.title"
            " || e.textContent.trim())).map(e => e.outerHTML)"
        )
        assert unnamed == []
    assert page.locator("main").count() == page.locator("nav").count() == 1
