"""flatland8k: a captioned set that code draws in Flickr8k's layout, every picture's content known."""

from clipgraft.data.flatland.captions import is_known_to_teacher, plain_caption, write_captions
from clipgraft.data.flatland.prompts import Prompt, WordPrompt, fidelity_prompts, kept_word_prompts
from clipgraft.data.flatland.scenes import Scene, sample_scene
from clipgraft.data.flatland.world import ATTRIBUTES, HELD_OUT_PAIRS, HELD_OUT_TRIPLES
from clipgraft.data.flatland.writer import draw_flatland8k, draw_scene, draw_scenes, plain_captions

__all__ = [
    "ATTRIBUTES",
    "HELD_OUT_PAIRS",
    "HELD_OUT_TRIPLES",
    "Prompt",
    "Scene",
    "WordPrompt",
    "draw_flatland8k",
    "draw_scene",
    "draw_scenes",
    "fidelity_prompts",
    "is_known_to_teacher",
    "kept_word_prompts",
    "plain_caption",
    "plain_captions",
    "sample_scene",
    "write_captions",
]
