"""Batches of images with captions, a pure function of seed and epoch.

A run resumed at (epoch, start) sees the batches of the unbroken run, with any number of workers and training
processes. Workers are sent the epoch and the images themselves: they hold no table of the data set.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedTokenizerBase

from clipgraft.console import say
from clipgraft.data.batch_reader import Batch, BatchReader, Collate, Crops, Share
from clipgraft.data.crop_reader import CropReader
from clipgraft.data.dataset import TrainingImages
from clipgraft.data.random_crops import RandomCrops
from clipgraft.data.transforms import ImageProcessor
from clipgraft.errors import DataError, UserError, printable

NUM_NAMED = 3
"""Damaged images named while training; data.json has all."""
MAX_WORKERS = 16
"""Each holds some 300 MB of libraries, shared until they are written, and decodes one image at a time."""


class EpochSampler(Sampler[Share]):
    """A process's share of each full batch, in the epoch's order.

    `batch_size` counts the images of all processes; each gets an equal share of every batch.
    """

    def __init__(
        self,
        images: TrainingImages,
        batch_size: int,
        *,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
        has_spares: bool = False,
    ) -> None:
        if seed < 0:
            raise UserError(f"seed must not be negative; got {seed}")
        if not 1 <= batch_size <= len(images):
            raise UserError(
                f"batch_size must be between 1 and the number of images, {len(images)}; got {batch_size}"
            )
        if batch_size % num_processes:
            raise UserError(
                f"batch_size must be a multiple of the number of processes, {num_processes}; got {batch_size}"
            )
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.num_batches = len(images) // batch_size
        self.process_index, self.num_processes = process_index, num_processes
        self.has_spares = has_spares
        self.resume(0, 0)

    def resume(self, epoch: int, start: int) -> None:
        """Set the epoch of the next pass and its first batch."""
        if not 0 <= start <= self.num_batches:
            raise UserError(f"start must be between 0 and the {self.num_batches} batches; got {start}")
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return self.num_batches - self.start

    def __iter__(self) -> Iterator[Share]:
        images = self.images.epoch(self.seed, self.epoch, self.start * self.batch_size)
        size = self.batch_size // self.num_processes
        begin = self.process_index * size
        for number in range(self.start, self.num_batches):
            batch = list(islice(images, self.batch_size))
            if len(batch) < self.batch_size:
                raise DataError(
                    f"the source has {number * self.batch_size + len(batch):,} training images and "
                    f"was to have {len(self.images):,}; it has changed, or data.num_train_images is too high"
                )
            spares = batch[begin + size :] + batch[:begin] if self.has_spares else None
            yield Share(self.epoch, batch[begin : begin + size], spares)


class CaptionedBatches:
    """Training batches of any epoch, from any position.

    Args:
        images: The training images.
        crops: Image -> its crop.
        tokenizer: The model's own.
        processor: The model's own.
        batch_size: Images per batch over all processes. A last, smaller batch is dropped: a contrastive loss
            depends on its size.
        seed: Decides order and captions, together with the epoch.
        captions_per_image: Captions drawn for each image.
        length_multiple: See `Collate`; 77 pads to all positions.
        num_workers: Worker processes; 0 = this process.
        process_index: This process's share of each batch.
        num_processes: Equal shares of a batch.
        skips_damaged: Replace damaged images by the next intact ones of the batch; see `BatchReader`.
        random_crops: Cuts each image's crop anew in every epoch; `crops` are whole images then.

    Raises:
        UserError: If there is no full batch, or it cannot be divided evenly.
    """

    def __init__(
        self,
        images: TrainingImages,
        crops: Crops,
        *,
        tokenizer: PreTrainedTokenizerBase,
        processor: ImageProcessor,
        batch_size: int,
        seed: int,
        captions_per_image: int = 1,
        length_multiple: int = 1,
        num_workers: int = 0,
        process_index: int = 0,
        num_processes: int = 1,
        skips_damaged: bool = False,
        random_crops: RandomCrops | None = None,
    ) -> None:
        self.sampler = EpochSampler(
            images,
            batch_size,
            seed=seed,
            process_index=process_index,
            num_processes=num_processes,
            has_spares=skips_damaged,
        )
        self.damaged: dict[str, str] = {}
        """Image id -> reason, of damaged images that were met so far."""
        self.reader = BatchReader(
            crops,
            Collate(processor, tokenizer.eos_token_id, length_multiple),
            tokenizer=tokenizer,
            seed=seed,
            captions_per_image=captions_per_image,
            random_crops=random_crops,
        )
        if num_workers:
            # Else the tokenizers library warns in each worker that it was forked.
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.loader: DataLoader[Any] = DataLoader(
            self.reader,
            batch_sampler=self.sampler,  # type: ignore[arg-type]  # a Share goes to `__getitems__` whole
            num_workers=num_workers,
            collate_fn=_as_it_is,  # type: ignore[arg-type]  # the reader has collated
            worker_init_fn=_ignore_interrupt,
            persistent_workers=num_workers > 0,
            generator=torch.Generator(),  # else each pass would use the global one
        )

    def __len__(self) -> int:
        return self.sampler.num_batches

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yield the batches of an epoch from `start` on; see `Collate`.

        Raises:
            UserError: If an image is damaged or missing, or a worker was killed.
        """
        self.sampler.resume(epoch, start)
        for batch in self.loader:
            if isinstance(batch, Exception):
                raise batch
            self._note_damaged(batch.pop("damaged", {}))
            yield batch

    def _note_damaged(self, found: dict[str, str]) -> None:
        for name, reason in found.items():
            if name not in self.damaged and len(self.damaged) < NUM_NAMED:
                say(printable(f"{name} is skipped ({reason}); data.json names all that are met"))
            self.damaged[name] = reason


def choose_num_workers(setting: int, crops: Crops, num_processes: int) -> int:
    """Return the number of workers to start.

    That is `setting`; for -1, one per core if crops are decoded while training, else none. Training processes
    of one machine share its cores.
    """
    if setting >= 0:
        return setting
    if not isinstance(crops, CropReader):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    num_local = int(os.environ.get("LOCAL_WORLD_SIZE", num_processes))
    return min(MAX_WORKERS, max(1, cores // num_local))


@contextmanager
def clear_worker_errors() -> Iterator[None]:
    """Say in one line that a worker was killed.

    torch raises at any time, not only while a batch is awaited.

    Raises:
        UserError: In place of torch's RuntimeError.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise UserError(
            f"a process that reads images ended ({str(error).strip()}); if memory or a container's shared "
            "memory (/dev/shm) is short, lower finetune.num_workers"
        ) from error


def _as_it_is(batch: Batch | Exception) -> Batch | Exception:
    return batch


def _ignore_interrupt(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process finishes its step, and then stops them
