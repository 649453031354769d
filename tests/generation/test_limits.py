"""What cannot be drawn is refused before anything is loaded, by every way in, with one sentence."""

import re

import pytest

from clipgraft.config import build_recipe
from clipgraft.errors import UserError
from clipgraft.generation.generator import load
from clipgraft.generation.params import Job
from clipgraft.generation.schedulers import SCHEDULERS, max_steps
from clipgraft.models.defaults import STABLE_DIFFUSION
from clipgraft.studio.schemas import ImagesRequest, JobRequest
from clipgraft.whole_run import check
from helpers import refused

BAD = {
    "lcm has 50 steps": ({"scheduler": "lcm", "steps": 51}, "from 1 to 50 with scheduler 'lcm'; got 51"),
    "ddim begins one late": (
        {"scheduler": "ddim", "steps": 1000},
        "from 1 to 999 with scheduler 'ddim'; got 1000",
    ),
    "no step": ({"scheduler": "dpm++", "steps": 0}, "from 1 to 1000 with scheduler 'dpm++'; got 0"),
    "no bound": ({"guidance_scale": 1e308}, "guidance_scale must be from 1 (no guidance) to 100; got 1e+308"),
}


@pytest.fixture(params=BAD)
def bad(request):
    return BAD[request.param]


def test_the_command_line_refuses_it(bad, capsys, tmp_path):
    settings, message = bad
    options = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]
    assert message in refused(capsys, "generate", "A dog", "--base", "nowhere", *options, "--out", tmp_path)


def test_an_axis_of_a_grid_refuses_it(bad, capsys, tmp_path):
    settings, message = bad
    names = {"guidance_scale": "guidance"}
    axes = [
        part for name, value in settings.items() for part in ("--axis", f"{names.get(name, name)}={value}")
    ]
    assert message in refused(capsys, "grid", "A dog", "--base", "nowhere", *axes, "--out", tmp_path)


def test_a_recipe_with_it_is_refused_before_training(bad):
    settings, message = bad
    values = {{"steps": "num_inference_steps"}.get(name, name): value for name, value in settings.items()}
    with pytest.raises(UserError) as refusal:
        check(build_recipe({"generate": values}))
    assert message in str(refusal.value) or re.search(
        r"(less|greater) than or equal .* got", str(refusal.value)
    )


def test_evaluate_has_the_same_bounds():
    for values in ({"guidance_scale": 1e308}, {"num_inference_steps": 0}, {"num_inference_steps": 1001}):
        with pytest.raises(UserError, match="recipe key 'evaluate"):
            build_recipe({"evaluate": values})


def test_http_refuses_it_on_an_axis_too():
    for settings, message in BAD.values():
        axes = [{"name": name, "values": [value]} for name, value in settings.items()]
        request = JobRequest.model_validate({"prompt": "A dog", "axes": axes})
        with pytest.raises(UserError) as refusal:
            request.expand("flatland/teacher", lambda _model: STABLE_DIFFUSION, 64)
        # A studio's own bound on steps is the stricter one.
        assert message in str(refusal.value) or str(refusal.value) == "steps must be from 1 to 150; got 1000"


def test_openais_route_refuses_it():
    request = ImagesRequest.model_validate({"prompt": "A dog", "scheduler": "lcm", "steps": 51})
    with pytest.raises(UserError, match="from 1 to 50 with scheduler 'lcm'; got 51"):
        request.jobs(STABLE_DIFFUSION)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_largest_number_of_steps_is_taken(name: str):
    assert Job("A dog", scheduler=name, num_inference_steps=max_steps(name))
    with pytest.raises(UserError, match="steps must be from 1 to"):
        Job("A dog", scheduler=name, num_inference_steps=max_steps(name) + 1)


def test_a_base_of_fewer_timesteps_takes_fewer_steps():
    with pytest.raises(UserError, match="from 1 to 499 with scheduler 'pndm'; got 500"):
        Job("A dog", scheduler="pndm", num_inference_steps=500).resolved(STABLE_DIFFUSION, 500)


def test_python_refuses_it(bad):
    settings, message = bad
    generator = load("flatland", device="cpu")
    with pytest.raises(UserError, match=re.escape(message)):
        generator.generate("A dog", **settings)
