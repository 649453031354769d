"""Training from the page in a real Chromium: checked, started, watched, stopped, resumed."""

import pytest

import tiny
from browser import until, view
from clipgraft.studio.service import Service
from contrast import faint_texts

pytestmark = [pytest.mark.slow, pytest.mark.allow_hosts(["127.0.0.1"])]


@pytest.fixture
def service(runs_dir, tmp_path, cache):
    """A studio with a data set, whose trainings do not end up among the runs that tests share."""
    tiny.write_flickr8k(tmp_path / "data" / "photos")
    (tmp_path / "data" / "empty").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny").symlink_to(runs_dir / "tiny")
    made = Service(
        tmp_path / "runs",
        tmp_path / "home",
        device="cpu",
        cache=cache,
        data_dir=tmp_path / "data",
    )
    yield made
    if not made.is_stopping:
        made.stop(timeout=30)


def check(page, data):
    view(page, "training")
    page.click("#train-new")
    page.wait_for_selector("#train-data option", state="attached")
    page.select_option("#train-data", data)
    page.click("#train-check")


def test_a_training_is_checked_watched_stopped_and_resumed(page, service):
    check(page, "photos")
    page.wait_for_selector(".findings li")
    assert "24 photographs look alike" in page.inner_text(".findings")
    assert page.inner_text("#train-findings p").startswith("16 train, 4 val, 4 test images.")
    page.click("#train-findings summary")
    assert "look alike" in page.frame_locator("#train-findings iframe").locator("body").inner_text()
    page.select_option("#train-recipe", "tiny")
    assert page.get_attribute("#train-epochs", "placeholder") == "2"
    page.fill("#train-name", "dogs")
    page.fill("#train-epochs", "400")
    page.select_option("#train-preview", "tiny/after")
    page.fill("#train-every", "2")
    page.fill("#train-prompts", "A dog\nA cat")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.click("#train button[type=submit]")
    page.wait_for_selector("[data-run=dogs][aria-pressed=true]")
    page.wait_for_selector(".samples img", timeout=60_000)
    page.wait_for_selector("svg.chart path.batch", state="attached")
    assert page.get_attribute(".samples img", "alt").startswith("Sample 1 after step ")
    view(page, "generate")
    page.fill("#prompt", "A dog now")
    until(page, "document.getElementById('estimate').textContent.includes('after training dogs')")
    view(page, "training")
    page.click("[data-act=stop]")
    page.wait_for_selector("[data-act=resume]", timeout=60_000)
    assert "stopped" in page.inner_text("[data-run=dogs]")
    page.focus("[data-act=resume]")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('.job .hint').textContent.startsWith('At work; images wait.')", 60)
    page.wait_for_selector("[data-act=stop]")
    page.click("[data-act=stop]")
    page.wait_for_selector("[data-act=resume]", timeout=60_000)
    assert service.trainings.training("dogs").state == "stopped"


def test_a_refused_name_and_a_failed_check_are_said(page):
    check(page, "empty")
    page.wait_for_selector("#train-findings .warn", timeout=60_000)
    assert page.is_hidden("#train-settings")
    page.select_option("#train-data", "photos")
    page.wait_for_selector("#train-check:has-text('Check'):not(:has-text('again'))")
    page.click("#train-check")
    page.wait_for_selector("#train-settings", timeout=60_000)
    page.fill("#train-name", "tiny")
    page.click("#train button[type=submit]")
    page.wait_for_selector("#notice:visible")
    assert "there is a 'tiny' among the runs already" in page.inner_text("#notice")


def test_the_form_is_named_and_stands_out_in_light_and_dark(page):
    check(page, "photos")
    page.wait_for_selector("#train-settings", timeout=60_000)
    for kind in ("finetune", "bridge", "distill"):
        page.select_option("#train-kind", kind)
        unnamed = page.evaluate(
            "[...document.querySelectorAll('#train input, #train select, #train textarea, #train iframe')]"
            ".filter(e => e.offsetParent && !(e.labels?.length || e.title)).map(e => e.outerHTML)"
        )
        assert unnamed == []
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert faint_texts(page) == []
