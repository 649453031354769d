"""Images that are not taken to be in memory, in an order by windows."""

from itertools import islice

import numpy as np

from clipgraft.data.dataset import CaptionedImages


class Windowed:
    """Training images whose windows of four come in a random order, shuffled within."""

    SIZE = 4

    def __init__(self, images: CaptionedImages) -> None:
        self._images = images

    def __len__(self):
        return len(self._images)

    def epoch(self, seed, epoch, start=0):
        def numbers():
            starts = range(0, len(self), self.SIZE)
            for place in np.random.default_rng([seed, epoch]).permutation(len(starts)):
                window = np.arange(starts[place], min(starts[place] + self.SIZE, len(self)))
                yield from np.random.default_rng([seed, epoch, place]).permutation(window).tolist()

        return ((number, self._images[number]) for number in islice(numbers(), start, None))

    def first(self, count):
        return CaptionedImages(self._images[:count])

    def iter_captions(self):
        return self._images.iter_captions()

    @property
    def fingerprint(self):
        return self._images.fingerprint
