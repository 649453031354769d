"""Fixed prompts: what they name, and how many of their combinations are held out."""

from collections import Counter

from clipgraft.flatland import composed_prompts, fidelity_prompts, plain_caption
from clipgraft.flatland.prompts import KINDS
from clipgraft.flatland.world import HELD_OUT_NUMBERS, HELD_OUT_RELATIONS, SUBJECTS


def test_fidelity_prompts_are_240_fixed_sentences_half_held_out():
    prompts = fidelity_prompts()
    assert len({prompt.text for prompt in prompts}) == len(prompts) == 240
    assert [prompt.scene.is_held_out for prompt in prompts] == [True, False] * 120
    assert all(prompt.text == plain_caption(prompt.scene) for prompt in prompts)
    composed = ("companion", "number", "size", "side", "weather", "relation")
    assert not any(getattr(prompt.scene, name) for prompt in prompts for name in composed)
    assert {prompt.scene.subject for prompt in prompts} == {*SUBJECTS, ""}


def test_composed_prompts_are_twenty_of_each_kind_half_held_out():
    prompts = composed_prompts()
    assert len({prompt.text for prompt in prompts}) == len(prompts) == 120
    counts = Counter((prompt.kind, prompt.scene.is_held_out) for prompt in prompts)
    assert counts == {(kind, held_out): 10 for kind in KINDS for held_out in (True, False)}
    assert [prompt.kind for prompt in prompts[:6]] == list(KINDS)
    assert all(prompt.text == plain_caption(prompt.scene) for prompt in prompts)


def test_composed_prompt_names_one_thing_more_than_simple():
    for kind, scene in ((prompt.kind, prompt.scene) for prompt in composed_prompts()):
        more = {name for name in ("number", "side", "size", "weather", "companion") if getattr(scene, name)}
        assert more == {"companion" if kind in ("relation", "two") else kind}
        assert bool(scene.relation) == (kind == "relation")


def test_held_out_relations_and_numbers_are_new_themselves():
    for kind, scene in ((prompt.kind, prompt.scene) for prompt in composed_prompts()):
        if kind in ("relation", "two"):
            is_new = (scene.subject, scene.relation, scene.companion) in HELD_OUT_RELATIONS
        else:
            is_new = (
                (scene.number, scene.subject) in HELD_OUT_NUMBERS if kind == "number" else scene.is_held_out
            )
        assert is_new == scene.is_held_out
