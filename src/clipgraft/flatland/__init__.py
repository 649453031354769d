"""flatland: a small painted world with captions, each image's content known."""

from clipgraft.flatland.captions import is_known_to_teacher, plain_caption, write_captions
from clipgraft.flatland.prompts import Prompt, composed_prompts, fidelity_prompts
from clipgraft.flatland.scenes import sample_scene
from clipgraft.flatland.world import ATTRIBUTES, Scene
from clipgraft.flatland.writer import (
    DRAWING_VERSION,
    draw_flatland8k,
    draw_scene,
    draw_scenes,
    plain_captions,
)

__all__ = [
    "ATTRIBUTES",
    "DRAWING_VERSION",
    "Prompt",
    "Scene",
    "composed_prompts",
    "draw_flatland8k",
    "draw_scene",
    "draw_scenes",
    "fidelity_prompts",
    "is_known_to_teacher",
    "plain_caption",
    "plain_captions",
    "sample_scene",
    "write_captions",
]
