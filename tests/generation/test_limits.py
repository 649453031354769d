"""Bad sampling parameters are refused before loading, by every interface, in one sentence."""

import re

import pytest

from clipgraft.config import build_recipe
from clipgraft.errors import UserError
from clipgraft.generation.generator import load
from clipgraft.models.defaults import STABLE_DIFFUSION
from clipgraft.scheduler_recipes import SCHEDULERS, max_steps
from clipgraft.studio.model_folder import ModelFolder
from clipgraft.studio.named_files import NamedFiles
from clipgraft.studio.schemas import ImagesRequest, JobRequest
from clipgraft.studio.uploads import Uploads
from clipgraft.whole_run import check
from helpers import image_request, refused

BAD = {
    "lcm has 50 steps": (
        {"scheduler": "lcm", "num_inference_steps": 51},
        "from 1 to 50 with scheduler 'lcm'; got 51",
    ),
    "ddim begins one late": (
        {"scheduler": "ddim", "num_inference_steps": 1000},
        "from 1 to 999 with scheduler 'ddim'; got 1000",
    ),
    "no step": (
        {"num_inference_steps": 0},
        "'num_inference_steps': input should be greater than or equal to 1; got 0",
    ),
    "no bound": (
        {"guidance_scale": 1e308},
        "'guidance_scale': input should be less than or equal to 100; got 1e+308",
    ),
}


@pytest.fixture(params=BAD)
def bad(request):
    return BAD[request.param]


def test_the_command_line_refuses_it(bad, capsys, tmp_path):
    settings, message = bad
    flags = {"num_inference_steps": "--steps"}
    named = [(flags.get(name, f"--{name.replace('_', '-')}"), value) for name, value in settings.items()]
    options = [part for option in named for part in option]
    assert message in refused(capsys, "generate", "A dog", "--base", "nowhere", *options, "--out", tmp_path)


def test_an_axis_of_a_grid_refuses_it(bad, capsys, tmp_path):
    settings, message = bad
    names = {"guidance_scale": "guidance", "num_inference_steps": "steps"}
    axes = [
        part for name, value in settings.items() for part in ("--axis", f"{names.get(name, name)}={value}")
    ]
    assert message in refused(capsys, "grid", "A dog", "--base", "nowhere", *axes, "--out", tmp_path)


def test_a_recipe_with_it_is_refused_before_training(bad):
    settings, message = bad
    with pytest.raises(UserError) as refusal:
        check(build_recipe({"generate": settings}))
    assert message in str(refusal.value) or re.search(
        r"(less|greater) than or equal .* got", str(refusal.value)
    )


def test_evaluate_has_the_same_bounds():
    for values in ({"guidance_scale": 1e308}, {"num_inference_steps": 0}, {"num_inference_steps": 1001}):
        with pytest.raises(UserError, match="recipe key 'evaluate"):
            build_recipe({"evaluate": values})


@pytest.fixture
def files(tmp_path):
    return NamedFiles(ModelFolder(None), Uploads(tmp_path, max_bytes=1, max_pixels=1))


def test_http_refuses_it_on_an_axis_too(files):
    for settings, message in BAD.values():
        axes = [{"name": name, "values": [value]} for name, value in settings.items()]
        request = JobRequest.model_validate({"prompt": "A dog", "axes": axes})
        with pytest.raises(UserError) as refusal:
            request.requests("flatland/teacher", lambda _model: STABLE_DIFFUSION, 64, files)
        # A studio's own bound on steps is the stricter one.
        bound = "setting 'num_inference_steps': input should be less than or equal to 150; got 1000"
        assert message in str(refusal.value) or str(refusal.value) == bound


def test_openais_route_refuses_it(files):
    request = ImagesRequest.model_validate({"prompt": "A dog", "scheduler": "lcm", "steps": 51})
    with pytest.raises(UserError, match="from 1 to 50 with scheduler 'lcm'; got 51"):
        request.requests(STABLE_DIFFUSION, files)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_largest_number_of_steps_is_taken(name: str):
    assert image_request("A dog", scheduler=name, num_inference_steps=max_steps(name))
    with pytest.raises(UserError, match=r"num_inference_steps('?: input should be less| must be from 1 to)"):
        image_request("A dog", scheduler=name, num_inference_steps=max_steps(name) + 1)


def test_a_base_of_fewer_timesteps_takes_fewer_steps():
    with pytest.raises(UserError, match="from 1 to 499 with scheduler 'pndm'; got 500"):
        image_request("A dog", scheduler="pndm", num_inference_steps=500).resolved(STABLE_DIFFUSION, 500)


def test_python_refuses_it(bad):
    settings, message = bad
    generator = load("flatland", device="cpu")
    with pytest.raises(UserError, match=re.escape(message)):
        generator.generate("A dog", **settings)
