"""Random crops: from all of a photograph, never distorted, and the same wherever they are cut."""

import numpy as np
import pytest
from PIL import Image

import tiny
from clipgraft.data.random_crops import RandomCrops, without_crop
from clipgraft.data.transforms import clip_crop, with_resize_mode

SIDE = tiny.IMAGE_SIZE
MODES = ("shortest", "longest", "squash")
SHAPES = [(96, 96), (192, 64), (64, 192), (150, 100)]


def processor_of(mode=""):
    return with_resize_mode(tiny.build_clip().image_processor, mode)


def ramps(width, height):
    """Red rises by place from left to right and green from top to bottom, by one a pixel; blue is full."""
    image = np.full((height, width, 3), 255, np.uint8)
    image[..., 0], image[..., 1] = np.arange(width), np.arange(height)[:, None]
    return Image.fromarray(image)


def crops_of(image, mode, min_scale, count=40):
    processor = processor_of(mode)
    whole = clip_crop(image, without_crop(processor))
    crops = RandomCrops(processor, min_scale, seed=0)
    return whole, [crops(whole, epoch, 5) for epoch in range(count)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_largest_crop_is_as_large_as_the_processors_own(mode, shape):
    whole, crops = crops_of(ramps(*shape), mode, 1.0, count=3)
    own = clip_crop(ramps(*shape), processor_of(mode))
    for crop in crops:
        assert (crop.shape, crop.dtype) == ((3, SIDE, SIDE), np.uint8)
        assert (crop[2] == own[2]).all()  # the same bars, if any
        if whole.shape[1:] == (SIDE, SIDE) or mode == "longest":
            assert (crop == own).all()


def test_crops_come_from_all_of_a_long_photograph():
    whole, crops = crops_of(ramps(192, 64), "shortest", 0.5)
    assert whole.shape == (3, 32, 96)  # three times as long as the square
    reds = np.stack([crop[0] for crop in crops])
    assert reds.min() < 10
    assert reds.max() > 182
    assert np.std(reds.mean((1, 2))) > 25  # the centre square alone would give 12 at most


@pytest.mark.parametrize("shape", [(192, 64), (64, 192), (96, 96)])
def test_crops_are_not_distorted_and_of_the_areas_asked_for(shape):
    scale = min(shape) / SIDE  # pixels of the photograph in one of the whole
    _, crops = crops_of(ramps(*shape), "shortest", 0.25, count=200)
    widths = [int(crop[0].max()) - int(crop[0].min()) + 1 for crop in crops]
    heights = [int(crop[1].max()) - int(crop[1].min()) + 1 for crop in crops]
    assert np.abs(np.array(widths) - heights).max() <= 2 * scale
    areas = (np.array(widths) / min(shape)) ** 2
    assert 0.2 <= areas.min() <= 0.3
    assert areas.max() > 0.9
    assert np.quantile(areas, 0.5) == pytest.approx(0.625, abs=0.06)  # uniform


@pytest.mark.parametrize("shape", [(192, 64), (64, 192)])
def test_crops_of_longest_keep_shape_and_bars(shape):
    whole, crops = crops_of(ramps(*shape), "longest", 0.25)
    own = clip_crop(ramps(*shape), processor_of("longest"))
    assert sorted(whole.shape[1:]) == [10, SIDE]
    for crop in crops:
        assert (crop[2] == own[2]).all()
        shown = crop[:, own[2] > 0]
        lengths = [int(channel.max()) - int(channel.min()) for channel in shown[:2]]
        assert max(lengths) / (min(lengths) + 1e-9) == pytest.approx(3, rel=0.25)


def test_crops_follow_from_seed_epoch_and_image_alone():
    processor = processor_of()
    whole = clip_crop(ramps(192, 64), without_crop(processor))
    crops, again = RandomCrops(processor, 0.5, seed=3), RandomCrops(processor, 0.5, seed=3)
    assert all((crops(whole, *place) == again(whole, *place)).all() for place in [(0, 0), (2, 7)])
    others = [crops(whole, 0, 1), crops(whole, 1, 0), RandomCrops(processor, 0.5, seed=4)(whole, 0, 0)]
    assert all((crops(whole, 0, 0) != other).any() for other in others)
