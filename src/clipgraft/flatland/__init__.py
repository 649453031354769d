"""flatland: a small painted world with captions, each image's content known."""

from clipgraft.flatland.captions import is_known_to_teacher, plain_caption, write_captions
from clipgraft.flatland.prompts import Prompt, WordPrompt, fidelity_prompts, kept_word_prompts
from clipgraft.flatland.scenes import Scene, sample_scene
from clipgraft.flatland.world import ATTRIBUTES, HELD_OUT_PAIRS, HELD_OUT_TRIPLES
from clipgraft.flatland.writer import draw_flatland8k, draw_scene, draw_scenes, plain_captions

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
