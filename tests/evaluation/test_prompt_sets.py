"""Prompts of an evaluation: fixed ones of flatland, simple and composed, in sets and parts."""

from clipgraft.evaluation.prompt_sets import build_prompts, describe_sets, members
from clipgraft.evaluation.results import Evaluation, Figure
from clipgraft.flatland import composed_prompts, fidelity_prompts
from clipgraft.flatland.prompts import KINDS
from clipgraft.settings import EvaluateSettings


def test_composed_prompts_are_half_as_many_as_simple_ones():
    prompts = build_prompts(EvaluateSettings(num_prompts=240), [], draws_flatland=True)
    assert [prompt.text for prompt in prompts[:240]] == [each.text for each in fidelity_prompts()]
    assert [prompt.text for prompt in prompts[240:]] == [each.text for each in composed_prompts()]
    assert [prompt.number for prompt in prompts[240:]] == list(range(120))
    sizes = {each.name: each.num_prompts for each in describe_sets(prompts)}
    halves = {f"composed/{kind}_combinations": 60 for kind in ("held_out", "seen")}
    assert {name: size for name, size in sizes.items() if name.startswith("composed")} == {
        "composed": 120,
        **{f"composed/{kind}": 20 for kind in KINDS},
        **halves,
    }
    assert sizes["plain"] == 240
    assert sizes["fixed"] == 360
    assert sizes["plain/held_out_combinations"] == sizes["plain/seen_combinations"] == 120


def test_simple_and_composed_prompts_are_parts_of_one_set():
    prompts = build_prompts(EvaluateSettings(num_prompts=4), [], draws_flatland=True)
    parents = {each.name: each.part_of for each in describe_sets(prompts)}
    assert (parents["fixed"], parents["plain"], parents["composed"]) == (None, "fixed", "fixed")
    assert members(prompts, "fixed") == members(prompts, "plain") + members(prompts, "composed")


def test_few_prompts_have_every_kind_of_composed_prompt_once():
    prompts = build_prompts(EvaluateSettings(num_prompts=12), [], draws_flatland=True)
    assert [len(members(prompts, f"composed/{kind}")) for kind in KINDS] == [1] * 6


def test_metrics_file_has_fidelity_by_kind_of_composed_prompt():
    values = {"plain": 0.9, "composed": 0.8, "composed/number": 0.7, "composed/side": None}
    figures = [
        Figure(metric="prompt_fidelity", prompt_set=name, variant="teacher", value=value, num=20)
        for name, value in values.items()
    ]
    short = Evaluation(figures=figures).short_metrics().scores["teacher"]
    assert (short.mean, short.composed) == (0.9, {"number": 0.7})
