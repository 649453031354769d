"""A canvas in image coordinates, 0 to 1, with antialiasing."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

INK: Colour = (34, 32, 40)
WHITE: Colour = (255, 255, 255)
OVERSAMPLING = 4
_TINTS: dict[str, tuple[Colour, float]] = {
    "day": ((255, 255, 255), 0.0),
    "sunset": ((255, 130, 70), 0.16),
    "night": ((24, 30, 74), 0.34),
}


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """Return `a` with a share of `b` in it."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def shaded(colour: Colour, share: float = 0.28) -> Colour:
    """Return a darker colour, or a lighter one of near black."""
    return mix(colour, WHITE if sum(colour) < 200 else INK, share)


class Canvas:
    """Draws shapes tinted by the time of day.

    Args:
        size: Side of the finished image, in pixels.
        time: Tints every colour.
    """

    def __init__(self, size: int, time: str):
        self.size, self.time = size, time
        self.side = size * OVERSAMPLING
        self.image = Image.new("RGB", (self.side,) * 2)
        self._draw = ImageDraw.Draw(self.image)
        self.tint_share = 1.0
        """Share of the time's tint in what is drawn: less on subjects, whose colours have to be seen."""

    def tinted(self, colour: Colour) -> Colour:
        """Return a colour in the light of the canvas' time of day."""
        light, share = _TINTS[self.time]
        return mix(colour, light, share * self.tint_share)

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        """Fill a polygon."""
        side = self.side
        self._draw.polygon([(x * side, y * side) for x, y in points], fill=self.tinted(colour))

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """Fill an ellipse with its centre at (x, y)."""
        self._draw.ellipse(self._box(x - rx, y - ry, x + rx, y + ry), fill=self.tinted(colour))

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """Draw a line with round ends and joints."""
        placed = [(x * self.side, y * self.side) for x, y in points]
        thickness = max(1, round(width * self.side))
        fill = self.tinted(colour)
        self._draw.line(placed, fill=fill, width=thickness)
        half = thickness / 2
        for x, y in placed:
            self._draw.ellipse((x - half, y - half, x + half, y + half), fill=fill)

    def light(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """Fill a luminous disc, not tinted."""
        self._draw.ellipse(self._box(x - radius, y - radius, x + radius, y + radius), fill=colour)

    def window(self, x: float, y: float, width: float, height: float, colour: Colour) -> None:
        """Fill a luminous rectangle, not tinted."""
        self._draw.rectangle(self._box(x, y, x + width, y + height), fill=colour)

    def streak(self, start: Point, end: Point, width: float, colour: Colour) -> None:
        """Draw a luminous line, not tinted."""
        self._draw.line(self._box(*start, *end), fill=colour, width=max(1, round(width * self.side)))

    def gradient(self, top: float, bottom: float, stops: Sequence[Colour]) -> None:
        """Fill a band of the image with evenly spaced colours, not tinted."""
        strip = Image.new("RGB", (1, len(stops)))
        strip.putdata(list(stops))
        first, last = round(top * self.side), round(bottom * self.side)
        band = strip.resize((1, last - first), Image.Resampling.BICUBIC)
        self.image.paste(band.resize((self.side, last - first), Image.Resampling.NEAREST), (0, first))

    def shadow(self, x: float, y: float, rx: float, ry: float) -> None:
        """Darken an ellipse."""
        left, top, right, bottom = (round(value) for value in self._box(x - rx, y - ry, x + rx, y + ry))
        mask = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(mask).ellipse((0, 0, mask.width - 1, mask.height - 1), fill=110)
        self.image.paste((22, 26, 40), (left, top, right, bottom), mask)

    def veil(self, colour: Colour, shares: Sequence[float]) -> None:
        """Mix a colour into the image, in shares from top to bottom."""
        strip = Image.new("L", (1, len(shares)))
        strip.putdata([round(255 * share) for share in shares])
        column = strip.resize((1, self.side), Image.Resampling.BICUBIC)
        self.image.paste(
            colour, (0, 0, self.side, self.side), column.resize((self.side,) * 2, Image.Resampling.NEAREST)
        )

    def finished(self) -> Image.Image:
        """Return the image at its own size."""
        return self.image.reduce(OVERSAMPLING)

    def _box(self, *corners: float) -> list[float]:
        return [corner * self.side for corner in corners]
