"""A studio over a tiny real run: the real classes, so small that a step takes milliseconds."""

import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import uvicorn
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from starlette.testclient import TestClient

import tiny
from app_client import TOKEN
from browser import ARGUMENTS, CHROMIUM, EXPECTED
from clipgraft.config import build_recipe
from clipgraft.models.base import FrozenBase
from clipgraft.runs.run import Run
from clipgraft.studio.api import build_app
from clipgraft.studio.catalog import ModelCache
from clipgraft.studio.schemas import Limits
from clipgraft.studio.security import Access
from clipgraft.studio.server import _bound
from clipgraft.studio.service import Service
from clipgraft.whole_run import run_all
from lora_world import write_kohya

LIMITS = Limits(max_images_per_job=16, batch_size=4)


@pytest.fixture(scope="session")
def runs_dir(tmp_path_factory) -> Path:
    """A folder with one finished run, `tiny`."""
    folder = tmp_path_factory.mktemp("studio")
    recipe = build_recipe(
        {
            "data": {"source": str(tiny.write_flickr8k(folder / "data"))},
            "clip": {"name": str(tiny.write_clip(folder / "clip"))},
            "base": {"name": str(tiny.write_base(folder / "base"))},
            "finetune": {"batch_size": 8, "num_epochs": 2, "learning_rate": 1e-3},
            "bridge": {"hidden_size": 16, "batch_size": 16, "num_epochs": 1, "allow_few_captions": True},
            "generate": {"num_inference_steps": 2, "guidance_scale": 2.0, "prompts": ["A dog"]},
        }
    )
    with Run.begin(folder / "runs" / "tiny", recipe) as run:
        run_all(recipe, run.path)
    return folder / "runs"


def drawing(folder, name, color, size=(64, 64), ground="black"):
    image = Image.new("RGB", size, ground)
    ImageDraw.Draw(image).rectangle((8, 16, 40, 50), fill=color)
    image.save(folder / name)
    return folder / name


@pytest.fixture(scope="session")
def models_dir(runs_dir, tmp_path_factory):
    """A folder of models as ComfyUI lays it out, and images."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("Lora/fur", "controlnet", "ipadapter", "embeddings"):
        (folder / name).mkdir(parents=True)
    write_kohya(folder / "Lora" / "fur" / "soft.safetensors")
    other = {
        "lora_unet_other.lora_down.weight": torch.ones(2, 4),
        "lora_unet_other.lora_up.weight": torch.ones(4, 2),
    }
    save_file(other, folder / "Lora" / "other.safetensors")
    unet = FrozenBase.load(str(runs_dir.parent / "base"), components=["unet"]).unet
    tiny.build_controlnet(unet).save_pretrained(folder / "controlnet" / "edges")
    tiny.write_ip_adapter(folder / "ipadapter", unet)
    torch.manual_seed(4)
    save_file({"emb_params": torch.randn(2, tiny.TEACHER_WIDTH)}, folder / "embeddings" / "Cosy.safetensors")
    (folder / "secret.safetensors").write_bytes(b"no")
    drawing(folder, "picture.png", "red", ground="navy")
    drawing(folder, "mask.png", "white")
    drawing(folder, "small.png", "white", (32, 32))
    return folder


@pytest.fixture(scope="session")
def cache():
    """Models that all services share: loading takes longer than most tests."""
    return ModelCache("cpu")


@pytest.fixture
def service(runs_dir, tmp_path, cache):
    """A service that has not started to generate."""
    made = Service(runs_dir, tmp_path / "home", device="cpu", limits=LIMITS, cache=cache)
    yield made
    if not made.is_stopping:
        made.stop(timeout=20)


@pytest.fixture
def own_runs(service, tmp_path, monkeypatch) -> Path:
    """The service's runs folder, empty, which a test may change."""
    monkeypatch.setattr("clipgraft.studio.catalog.SECONDS_BETWEEN_SCANS", 0.0)
    service.catalog.runs_dir = tmp_path / "runs"
    service.catalog.runs_dir.mkdir()
    return service.catalog.runs_dir


@pytest.fixture
def client(service):
    """An HTTP client of a studio that draws."""
    with TestClient(build_app(service), base_url="http://localhost", raise_server_exceptions=False) as made:
        yield made


@pytest.fixture(scope="module")
def shared_client(runs_dir, tmp_path_factory):
    """A client that a module's tests share, which leave no job behind."""
    home, data_dir = tmp_path_factory.mktemp("shared") / "home", tmp_path_factory.mktemp("data")
    service = Service(runs_dir, home, device="cpu", limits=LIMITS, data_dir=data_dir)
    with TestClient(build_app(service), base_url="http://localhost", raise_server_exceptions=False) as made:
        yield made


@pytest.fixture
def locked(service):
    """An HTTP client, without a token, of a studio that asks for one."""
    app = build_app(service, Access(token="t" * 40))
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as made:
        yield made


@contextmanager
def served(app):
    """Serve an app on a free port of loopback; give its address."""
    with _bound("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=30)


@pytest.fixture
def address(service):
    """A studio that asks for a token."""
    with served(build_app(service, Access(TOKEN))) as address:
        yield address


@pytest.fixture
def openai_client(address):
    """OpenAI's own client of that studio."""
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{address}/v1", api_key=TOKEN, max_retries=0) as made:
        yield made


@pytest.fixture
def page_address(service):
    """A studio for a browser."""
    with served(build_app(service)) as address:
        yield f"{address}/"
        service.begin_to_stop()  # ends event streams, as a signal does


@pytest.fixture
def chromium():
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    if not CHROMIUM.is_file():
        pytest.skip(f"no {CHROMIUM}; apt install chromium")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(params=[1440, 390])
def page(chromium, page_address, request):
    """A page that fails its test where a script fails, a dialog opens or anything foreign is asked for."""
    context = chromium.new_context(viewport={"width": request.param, "height": 844}, accept_downloads=True)
    opened, faults = context.new_page(), []
    opened.on("pageerror", lambda error: faults.append(f"error: {error}"))
    opened.on(
        "console",
        lambda said: said.type == "error" and not EXPECTED.search(said.text) and faults.append(said.text),
    )
    opened.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    own = (page_address, "blob:")
    opened.on("request", lambda asked: asked.url.startswith(own) or faults.append(asked.url))
    opened.goto(page_address)
    opened.wait_for_selector("#model option", state="attached")
    yield opened
    width = opened.evaluate("document.documentElement.scrollWidth")
    assert width <= request.param, "the page is wider than the screen"
    context.close()
    assert faults == []
