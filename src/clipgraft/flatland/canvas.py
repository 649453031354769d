"""A canvas in image coordinates, 0 to 1, with antialiasing."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

OVERSAMPLING = 4
_TINTS: dict[str, tuple[Colour, float]] = {
    "day": ((255, 255, 255), 0.0),
    "sunset": ((255, 130, 70), 0.16),
    "night": ((24, 30, 74), 0.34),
}


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """Return `a` with a share of `b` in it."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


class Canvas:
    """Draws moved, scaled, mirrored shapes, tinted by the time of day.

    Args:
        size: Side of the finished image, in pixels.
        time: Tints every colour.
    """

    def __init__(self, size: int, time: str):
        self.size, self.time = size, time
        self.image = Image.new("RGB", (size * OVERSAMPLING,) * 2)
        self._draw = ImageDraw.Draw(self.image)
        self.frame(0.0, 0.0, 1.0)

    def frame(self, x: float, y: float, scale: float, *, mirrored: bool = False) -> None:
        """Move the origin to (x, y); its unit is `scale` image sides."""
        self._x, self._y, self._scale, self._sign = x, y, scale, -1 if mirrored else 1

    def tinted(self, colour: Colour) -> Colour:
        """Return a colour in the light of the canvas' time of day."""
        return mix(colour, *_TINTS[self.time])

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        """Fill a polygon."""
        self._draw.polygon([self._place(*point) for point in points], fill=self.tinted(colour))

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """Fill an ellipse with its centre at (x, y)."""
        (x0, y0), (x1, y1) = self._place(x - rx, y - ry), self._place(x + rx, y + ry)
        self._draw.ellipse((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), fill=self.tinted(colour))

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """Draw a line with round ends and joints."""
        placed = [self._place(*point) for point in points]
        thickness = max(1, round(width * self._scale * self.image.width))
        fill = self.tinted(colour)
        self._draw.line(placed, fill=fill, width=thickness)
        half = thickness / 2
        for x, y in placed:
            self._draw.ellipse((x - half, y - half, x + half, y + half), fill=fill)

    def light(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """Fill a luminous disc, not tinted, in the image's frame."""
        self._draw.ellipse(self._box(x - radius, y - radius, x + radius, y + radius), fill=colour)

    def window(self, x: float, y: float, width: float, height: float, colour: Colour) -> None:
        """Fill a luminous rectangle, not tinted, in the image's frame."""
        self._draw.rectangle(self._box(x, y, x + width, y + height), fill=colour)

    def _box(self, *corners: float) -> list[float]:
        return [corner * self.image.width for corner in corners]

    def gradient(self, top: float, bottom: float, stops: Sequence[Colour]) -> None:
        """Fill a band of the image with evenly spaced colours, not tinted."""
        strip = Image.new("RGB", (1, len(stops)))
        strip.putdata(list(stops))
        side = self.image.width
        first, last = round(top * side), round(bottom * side)
        self.image.paste(strip.resize((side, last - first), Image.Resampling.BICUBIC), (0, first))

    def finished(self) -> Image.Image:
        """Return the image at its own size."""
        return self.image.reduce(OVERSAMPLING)

    def _place(self, x: float, y: float) -> Point:
        side = self.image.width
        return (self._x + self._sign * x * self._scale) * side, (self._y + y * self._scale) * side
