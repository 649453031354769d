"""Write flatland8k in Flickr8k's layout."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from clipgraft.errors import MissingFileError, UserError
from clipgraft.files import read_jsonl
from clipgraft.flatland.backgrounds import draw_background
from clipgraft.flatland.canvas import Canvas
from clipgraft.flatland.captions import plain_caption, write_captions
from clipgraft.flatland.scenes import sample_scene
from clipgraft.flatland.skies import draw_weather
from clipgraft.flatland.subjects import draw_subjects
from clipgraft.flatland.world import Scene

IMAGE_SIZE = 128
DRAWING_VERSION = 2
"""Raised when flatland8k gets other pixels or captions; tests hold their checksums."""
JPEG_QUALITY = 95
ATTRIBUTES_NAME = "attributes.jsonl"
SPLIT_LISTS = {"train": "trainImages", "val": "devImages", "test": "testImages"}
"""Names of Flickr8k's lists, by split."""


def draw_scene(scene: Scene) -> Image.Image:
    """Draw a scene as an RGB image of 128 x 128 pixels."""
    canvas = Canvas(IMAGE_SIZE, scene.time)
    # A generator for each, so that the same place is drawn with and without a subject.
    background, subjects, weather = (
        random.Random(f"{scene.look}/{what}") for what in ("background", "subjects", "weather")
    )
    draw_background(canvas, scene.place, scene.weather, background)
    if scene.subject:
        draw_subjects(canvas, scene, subjects)
    draw_weather(canvas, scene.weather, weather)
    return canvas.finished()


def draw_scenes(scenes: Sequence[Scene], *, num_workers: int | None = None) -> np.ndarray:
    """Draw scenes (N, 3, 128, 128) uint8; `num_workers` None is one per core."""
    pixels = np.empty((len(scenes), 3, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    with _processes(num_workers) as pool:
        for index, image in enumerate(pool.map(draw_scene, scenes, chunksize=50)):
            pixels[index] = np.asarray(image).transpose(2, 0, 1)
    return pixels


def _processes(num_workers: int | None) -> ProcessPoolExecutor:
    # Spawned: a forked child of a process that runs torch can hang. Not `multiprocessing.Pool`: it restarts
    # workers for ever where they die at their start, as in a script without `if __name__ == "__main__"`.
    return ProcessPoolExecutor(num_workers or os.cpu_count(), mp_context=multiprocessing.get_context("spawn"))


def draw_flatland8k(
    out_dir: Path,
    *,
    seed: int = 0,
    num_images: int = 8000,
    num_workers: int | None = None,
    on_image: Callable[[int], None] = lambda done: None,
) -> None:
    """Draw a captioned dataset: 3/4 train, 1/8 val ("dev"), 1/8 test.

    Args:
        out_dir: Gets `Images/`, `Flickr8k.token.txt`, the three split lists and `attributes.jsonl`; empty or
            new.
        seed: The same seed gives the same bytes, with any number of workers.
        num_images: Of all splits.
        num_workers: Processes; None is one a core.
        on_image: Called with the number of images drawn so far.
    """
    if out_dir.exists() and any(out_dir.iterdir()):
        raise UserError(f"{out_dir} already holds files; name an empty or new folder with --out")
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    # A folder of its own, because several processes may draw the same dataset at the same time.
    part = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.", dir=out_dir.parent))
    try:
        rows = _draw_images(part, seed, num_images, num_workers, on_image)
        _write_lists(part, rows)
        part.chmod(0o755)  # mkdtemp's is the owner's alone
        _rename_unless_drawn(part, out_dir)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _draw_images(
    part: Path,
    seed: int,
    num_images: int,
    num_workers: int | None,
    on_image: Callable[[int], None],
) -> list[dict]:
    """Draw all images into `part/Images`; return their attributes and captions."""
    (part / "Images").mkdir()
    rows: list[dict] = []
    draw = partial(_draw_one, seed=seed, num_images=num_images, folder=part / "Images")
    with _processes(num_workers) as pool:
        for row in pool.map(draw, range(num_images), chunksize=50):
            rows.append(row)
            on_image(len(rows))
    return rows


def _rename_unless_drawn(part: Path, out_dir: Path) -> None:
    """Move a finished dataset into place, unless another process was faster."""
    try:
        part.rename(out_dir)  # takes the place of an empty folder
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def plain_captions(folder: Path) -> dict[str, str]:
    """Return image id -> plain caption of a folder that `draw_flatland8k` wrote."""
    path = folder / ATTRIBUTES_NAME
    if not path.is_file():
        raise MissingFileError(f"{path} not found; only drawn datasets have plain captions")
    return {row["image_id"]: row["plain_caption"] for row in read_jsonl(path)}


def split_of(index: int, num_images: int) -> str:
    """Return an image's split by its number: train, val, test."""
    eighth = num_images // 8
    if index < num_images - 2 * eighth:
        return "train"
    return "val" if index < num_images - eighth else "test"


def _draw_one(index: int, *, seed: int, num_images: int, folder: Path) -> dict:
    split = split_of(index, num_images)
    scene = sample_scene(seed, index, split)
    name = f"flatland_{index:05d}.jpg"
    # subsampling 0: colour at full resolution, since flat shapes have sharp edges.
    draw_scene(scene).save(folder / name, quality=JPEG_QUALITY, subsampling=0)
    attributes = {key: value for key, value in asdict(scene).items() if key != "look"}
    words = {"plain_caption": plain_caption(scene), "captions": write_captions(scene)}
    return {"image_id": name, "split": split, **attributes, "held_out": scene.is_held_out, **words}


def _write_lists(folder: Path, rows: list[dict]) -> None:
    tokens = [
        f"{row['image_id']}#{k}\t{text}\n" for row in rows for k, text in enumerate(row.pop("captions"))
    ]
    (folder / "Flickr8k.token.txt").write_text("".join(tokens), encoding="utf-8")
    for split, name in SPLIT_LISTS.items():
        names = [f"{row['image_id']}\n" for row in rows if row["split"] == split]
        (folder / f"Flickr_8k.{name}.txt").write_text("".join(names), encoding="utf-8")
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / ATTRIBUTES_NAME).write_text("".join(lines), encoding="utf-8")
