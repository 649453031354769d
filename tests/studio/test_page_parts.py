"""Images, masks, LoRAs and ControlNets in a real Chromium: painted, sent, and brought back."""

import io

import numpy as np
import pytest
from PIL import Image

from browser import until, view
from clipgraft.sampling_params import InferenceConfig
from clipgraft.studio.service import Service
from contrast import faint_texts

pytestmark = [pytest.mark.slow, pytest.mark.allow_hosts(["127.0.0.1"])]


@pytest.fixture
def service(runs_dir, models_dir, tmp_path, cache):
    made = Service(runs_dir, tmp_path / "home", device="cpu", cache=cache, models_dir=models_dir)
    yield made
    if not made.is_stopping:
        made.stop(timeout=20)


def generate(page):
    """Generate an image that is not the one shown before."""
    before = (
        page.locator("#images img").first.get_attribute("src") if page.locator("#images img").count() else ""
    )
    page.fill("#steps", "3")
    page.click("#submit")
    until(
        page,
        f"(document.querySelector('#images button img')?.getAttribute('src') || '{before}') !== '{before}'",
    )


def start_from(page, models_dir):
    page.click("#start-from summary")
    page.set_input_files("#init-file", models_dir / "picture.png")
    page.wait_for_selector("#init-image:visible")
    until(page, "document.getElementById('init-image').naturalWidth === 64")


def mask_of(service):
    settings = service.queue.history()[0].settings
    return np.asarray(Image.open(io.BytesIO(service.uploads.png(settings["mask_image"]))).convert("L"))


def test_a_mask_is_painted_sent_and_brought_back(page, service, models_dir):
    start_from(page, models_dir)
    page.locator("#mask-canvas").scroll_into_view_if_needed()
    box = page.locator("#mask-canvas").bounding_box()
    x, y = box["x"] + box["width"] / 4, box["y"] + box["height"] / 2
    page.mouse.move(x, y - 20)
    page.mouse.down()
    page.mouse.move(x, y + 20, steps=4)
    page.mouse.up()
    generate(page)
    painted = mask_of(service)
    assert set(np.unique(painted)) == {0, 255}
    assert painted[32, 16] == 255
    assert painted[:, 40:].max() == 0
    assert "within a mask" in page.inner_text("#images figcaption")
    page.click("#mask-invert")
    generate(page)
    assert np.array_equal(mask_of(service), 255 - painted)
    page.click("#images button")
    assert "strength 0.8, within a mask" in page.inner_text("#detail-settings")
    page.keyboard.press("Escape")
    page.click("#init-remove")
    page.wait_for_selector("#init-drop:visible")
    page.click("#images button")
    page.click("#detail-use")
    page.wait_for_selector("#init-image:visible")
    generate(page)
    assert np.array_equal(mask_of(service), 255 - painted)


def test_a_mask_is_painted_by_keyboard_or_loaded(page, service, models_dir):
    start_from(page, models_dir)
    page.focus("#mask-canvas")
    page.keyboard.press("Space")
    page.keyboard.press("Shift+ArrowRight")
    generate(page)
    painted = mask_of(service)
    assert painted[32, 32] == 255
    assert painted[0, 0] == 0
    page.set_input_files("#mask-file", models_dir / "mask.png")
    until(page, "document.getElementById('announcer').textContent === 'Mask loaded.'")
    generate(page)
    assert mask_of(service)[20, 20] == 255
    assert mask_of(service)[60, 60] == 0
    page.set_input_files("#mask-file", models_dir / "small.png")
    page.wait_for_selector("#notice:visible")
    assert "The mask has 32 × 32 pixels and the image 64 × 64" in page.inner_text("#notice")


def test_models_are_added_sent_and_brought_back(page, service, models_dir):
    page.click("#models-part summary")
    page.click("#add-loras")
    page.fill("#added [data-name=strength]", "0.6")
    page.click("#add-controls")
    page.click("#submit")
    page.wait_for_selector("#notice:visible")
    assert page.inner_text("#notice") == "Choose an image for the ControlNet."
    page.set_input_files("#added [type=file]", models_dir / "mask.png")
    page.wait_for_selector("#added img:visible")
    page.fill("#added [data-name=end]", "0.5")
    page.click("#add-embeddings")
    generate(page)
    settings = service.queue.history()[0].settings
    assert settings["loras"] == [{"name": "fur/soft", "strength": 0.6, "text_strength": None}]
    [control] = settings["controls"]
    assert (control["model"], control["scale"], control["end"]) == ("edges", 1, 0.5)
    assert settings["embeddings"] == ["Cosy"]
    for name in ("LoRA", "ControlNet", "Embedding"):
        page.click(f"[aria-label='Remove {name}']")
    assert page.locator(".part").count() == 0
    view(page, "gallery")
    page.wait_for_selector("#gallery-images button")
    assert (
        page.inner_text("#gallery-images .kind") == "LoRA fur/soft 0.6 · ControlNet edges 1 · Embedding Cosy"
    )
    page.click("#gallery-images button")
    page.select_option("#detail-format", "webp")
    assert page.get_attribute("#detail-download", "download").endswith(f"_seed{settings['seed']}.webp")
    page.click("#detail-use")
    page.wait_for_selector("#added img:visible")
    generate(page)
    assert service.queue.history()[0].settings == settings


def test_a_prompt_is_drawn_and_layers_are_left_out(page, service):
    page.fill("#prompt", "A {red|blue} ball")
    page.select_option("#model", "tiny/teacher")
    page.click("#more summary")
    page.check("#dynamic-prompts")
    page.fill("#clip-skip", "1")
    generate(page)
    settings = service.queue.history()[0].settings
    assert settings["prompt"] in ("A red ball", "A blue ball")
    assert settings["clip_skip"] == 1
    page.click("#images button")
    page.click("#detail-use")
    assert page.input_value("#prompt") == settings["prompt"]
    assert page.input_value("#clip-skip") == "1"
    assert not page.is_checked("#dynamic-prompts")


def test_models_for_another_base_say_so(page):
    page.click("#models-part summary")
    page.click("#add-controls")
    assert page.inner_text("#added option") == "edges"
    page.click("[aria-label='Remove ControlNet']")
    page.select_option("#model", "flatland/teacher")
    page.click("#add-controls")
    assert page.inner_text("#added option") == "edges (for another base)"


def test_a_generated_image_is_started_from(page, service):
    generate(page)
    page.click("#images button")
    page.click("#detail-start")
    page.wait_for_selector("#init-image:visible")
    generate(page)
    settings = service.queue.history()[0].settings
    assert settings["strength"] == 0.8
    assert service.uploads.has(settings["init_image"])


def test_all_of_it_stands_out_and_has_a_name(page, models_dir, tmp_path):
    start_from(page, models_dir)
    page.click("#models-part summary")
    for kind in ("loras", "controls", "ip_adapters", "embeddings"):
        page.click(f"#add-{kind}")
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, select, textarea, button, a, img, canvas')]"
        ".filter(e => e.offsetParent && !(e.labels?.length || e.ariaLabel || e.alt || e.title"
        " || e.textContent.trim())).map(e => e.outerHTML)"
    )
    assert unnamed == []
    assert page.locator("#scheduler optgroup").count() == 5
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert faint_texts(page) == []
        page.screenshot(path=tmp_path / f"{scheme}.png", full_page=True)
        assert (tmp_path / f"{scheme}.png").stat().st_size > 10_000


def test_the_vae_of_the_server_is_named_below_the_model(page, service):
    assert not page.is_visible("#vae")
    service.inference = InferenceConfig(vae="stabilityai/sd-vae-ft-mse")
    page.reload()
    page.wait_for_selector("#vae:visible")
    assert page.inner_text("#vae") == "VAE: sd-vae-ft-mse, in place of the model's own"
