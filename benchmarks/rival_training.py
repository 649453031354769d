"""Training steps as others make them: tutorials' loop, transformers' Trainer, open_clip's program."""

import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from clipgraft.data.dataset import CaptionedImage
from clipgraft.models.clip import ClipParts

LEARNING_RATE = 1e-5
OPEN_CLIP_MODEL = "ViT-B-32"
MODULES_OF_OPEN_CLIP = "import open_clip_train.main, webdataset, pandas"


class PlainDataset(Dataset):
    """As tutorials have it: each item opened and processed by itself, captions padded to 77."""

    def __init__(self, images: Sequence[CaptionedImage], clip: ClipParts):
        self.images, self.clip = images, clip

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.images[index]
        text = self.clip.tokenizer(
            image.captions[0], padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        )
        with Image.open(image.file) as picture:
            pixels = self.clip.image_processor(picture.convert("RGB"), return_tensors="pt").pixel_values[0]
        return {"input_ids": text.input_ids[0], "pixel_values": pixels}


class PlainLoop:
    """The loop of tutorials: AdamW, transformers' own loss, float32 or under autocast to bfloat16."""

    def __init__(
        self,
        images: Sequence[CaptionedImage],
        clip: ClipParts,
        batch_size: int,
        *,
        device: str = "cpu",
        bf16: bool = False,
        items: Sequence[dict[str, Tensor]] = (),
    ):
        self.model = clip.model.to(device)
        self.batches = _endless(DataLoader(items or PlainDataset(images, clip), batch_size))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
        self.autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16)

    def step(self) -> float:
        """Make a step; return its loss."""
        batch = {name: tensor.to(self.model.device) for name, tensor in next(self.batches).items()}
        with self.autocast:
            loss = self.model(**batch, return_loss=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def _endless(loader: DataLoader) -> Iterator[Any]:
    while True:
        yield from loader


def held_items(images: Sequence[CaptionedImage], clip: ClipParts) -> list[dict[str, Tensor]]:
    """All items of `PlainDataset`, decoded once, to leave the reading of images out of a step."""
    dataset = PlainDataset(images, clip)
    return [dataset[index] for index in range(len(dataset))]


def trainer_run(
    images: Sequence[CaptionedImage],
    clip: ClipParts,
    batch_size: int,
    steps: int,
    *,
    bf16: bool = False,
    fp16: bool = False,
    device: str = "cpu",
    items: Sequence[dict[str, Tensor]] = (),
) -> tuple[float, list[float]]:
    """Seconds a step of transformers' Trainer, the first left out, and the losses of all of them."""
    times, losses = [], []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if device != "cpu":
                torch.cuda.synchronize()
            times.append(time.perf_counter())

        def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
            losses.extend([logs["loss"]] if logs and "loss" in logs else [])

    def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
        return {name: torch.stack([item[name] for item in items]) for name in items[0]} | {
            "return_loss": True
        }

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=batch_size,
            max_steps=steps + 1,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            bf16=bf16,
            fp16=fp16,
            use_cpu=device == "cpu",
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        dataset = items or PlainDataset(images, clip)
        trainer = Trainer(clip.model, arguments, collate, dataset, callbacks=[Clock()])
        trainer._get_train_sampler = lambda *_: None  # the images' own order, as in the other variants
        trainer.train()
    return (times[-1] - times[0]) / steps, losses


def why_no_open_clip(python: str) -> str:
    """Why open_clip's program cannot be run by that Python; empty where it can."""
    if not python:
        return "no --open-clip PYTHON was given: one with open_clip_torch, webdataset and pandas"
    try:
        subprocess.run([python, "-c", MODULES_OF_OPEN_CLIP], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1]
    return ""


def open_clip_seconds(
    python: str, images: Sequence[CaptionedImage], batch_size: int, folder: Path, *, bf16: bool
) -> list[float]:
    """Seconds of each step but the first of an epoch of open_clip's training program."""
    table = folder / "open_clip.csv"
    rows = [f"{image.file}\t{image.captions[0]}" for image in images]
    table.write_text("\n".join(["filepath\ttitle", *rows]) + "\n", encoding="utf-8")
    output = subprocess.run(
        [
            *(python, "-m", "open_clip_train.main", "--dataset-type", "csv", "--train-data", str(table)),
            *("--model", OPEN_CLIP_MODEL, "--precision", "amp_bf16" if bf16 else "fp32", "--device", "cpu"),
            *("--batch-size", str(batch_size), "--workers", "0", "--epochs", "1", "--warmup", "1"),
            *("--lr", str(LEARNING_RATE), "--grad-clip-norm", "1.0", "--log-every-n-steps", "1"),
            *("--save-frequency", "0", "--logs", "none"),
        ],
        check=True,
        capture_output=True,
        text=True,
        cwd=folder,
    )
    rates = [float(rate) for rate in re.findall(r"Batch \(t\): [\d.]+, ([\d.e+-]+)/s", output.stderr)]
    return [batch_size / rate for rate in rates[1:]]
