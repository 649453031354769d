"""Random crops on the device."""

import torch

from clipgraft.training.augmentation import random_resized_crop


def ramp(size=32):
    """Every pixel holds its own place: rows in the first channel, columns in the second."""
    places = (torch.arange(size) + 0.5) / size
    return torch.stack(
        [places[:, None].expand(size, size), places.expand(size, size), torch.ones(size, size)]
    )


def test_crop_of_the_whole_area_is_the_image():
    pixels = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(random_resized_crop(pixels, 1.0), pixels, rtol=1e-4, atol=1e-5)


def test_crop_is_an_upright_square_of_the_asked_area_inside_the_image():
    torch.manual_seed(0)
    size = 32
    crops = random_resized_crop(ramp(size).expand(200, 3, size, size), 0.5)
    # Places between the outermost pixels' centres; half a pixel of the crop is missing at either end.
    spans = (crops[..., -1, -1] - crops[..., 0, 0])[:, :2] * size / (size - 1)
    torch.testing.assert_close(spans[:, 0], spans[:, 1], rtol=0.02, atol=0.02)
    area = spans[:, 0] * spans[:, 1]
    assert area.min() > 0.45
    assert area.max() < 1.01
    assert abs(area.mean() - 0.75) < 0.03
    assert crops.min() >= 0
    assert crops.max() <= 1.0001


def test_each_image_gets_a_crop_of_its_own():
    torch.manual_seed(0)
    crops = random_resized_crop(ramp().expand(2, 3, 32, 32), 0.5)
    assert not torch.allclose(crops[0], crops[1])


def test_crops_of_half_precision_lie_where_those_of_float32_do():
    crops = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            crops.append(random_resized_crop(ramp().expand(20, 3, 32, 32), 0.5))
    assert torch.equal(*crops)
