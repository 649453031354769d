"""Names of schedulers: the project's own and A1111's mean the same."""

import pytest

from clipgraft.config import build_recipe
from clipgraft.errors import UserError
from clipgraft.generation.grid import parse_axis
from clipgraft.sampling_params import SamplingParams
from clipgraft.scheduler_recipes import SCHEDULERS, scheduler_name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("dpm++", "dpm++"),
        ("DPM++ 2M Karras", "dpm++"),
        ("dpm++-2m-karras", "dpm++"),
        ("DPM++ 2M Automatic", "dpm++"),  # A1111's default for this sampler since 1.9
        ("DPM++ 2M", "dpm++-2m"),  # as up to 1.8, where the other one was called Karras
        ("DPM++ 2M Uniform", "dpm++-2m"),
        ("dpm++ 2m sde automatic", "dpm++-2m-sde-exponential"),
        ("DPM++ 2S a Karras", "dpm++-2s-a-karras"),
        ("DPM++ 3M SDE Exponential", "dpm++-3m-sde-exponential"),
        ("DPM2 a", "dpm2-a"),
        ("EULER A", "euler-a"),
        ("Euler Automatic", "euler"),
        ("euler_a", "euler-a"),
        ("PLMS", "pndm"),
        ("LMS Karras", "lms-karras"),
        ("UniPC", "unipc"),
    ],
)
def test_a_scheduler_has_several_names(text: str, name: str):
    assert scheduler_name(text) == name
    assert SamplingParams(scheduler=text).scheduler == name
    assert build_recipe({"generate": {"scheduler": text}}).generate.scheduler == name


def test_every_name_of_the_table_is_its_own():
    for name, recipe in SCHEDULERS.items():
        assert scheduler_name(name) == scheduler_name(recipe.a1111_name.upper()) == name


def test_names_of_the_first_version_are_still_there():
    assert {"dpm++", "pndm", "ddim", "euler", "unipc", "lcm"} <= SCHEDULERS.keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eulr", "no such scheduler; did you mean 'euler'? schedulers are dpm++, dpm++-2m, "),
        ("DPM adaptive", "most also with -karras or -exponential"),
        ("", "no such scheduler; schedulers are dpm++, "),
        ("ddim karras", "no such scheduler"),
    ],
)
def test_another_name_is_refused_with_what_there_is(text: str, message: str):
    with pytest.raises(UserError) as refusal:
        scheduler_name(text)
    assert message in str(refusal.value)
    with pytest.raises(UserError, match="no such scheduler"):
        SamplingParams.build({"scheduler": text})


def test_an_axis_takes_names_with_spaces():
    axis = parse_axis("scheduler=dpm++,Euler a, DPM++ SDE Karras")
    assert axis.values == ("dpm++", "euler-a", "dpm++-sde-karras")
    with pytest.raises(UserError, match="has a value twice"):
        parse_axis("scheduler=dpm++,DPM++ 2M Karras")
    with pytest.raises(UserError, match="no such scheduler"):
        parse_axis("scheduler=dpm++,magic")
