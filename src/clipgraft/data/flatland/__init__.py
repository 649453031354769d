"""flatland8k: a captioned set that code draws in Flickr8k's layout, every picture's content known."""

from clipgraft.data.flatland.captions import plain_caption, write_captions
from clipgraft.data.flatland.scenes import Scene, sample_scene
from clipgraft.data.flatland.world import HELD_OUT_PAIRS, HELD_OUT_TRIPLES
from clipgraft.data.flatland.writer import draw_flatland8k, draw_scene, plain_captions

__all__ = [
    "HELD_OUT_PAIRS",
    "HELD_OUT_TRIPLES",
    "Scene",
    "draw_flatland8k",
    "draw_scene",
    "plain_caption",
    "plain_captions",
    "sample_scene",
    "write_captions",
]
