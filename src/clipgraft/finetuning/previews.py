"""Preview images during training: the same prompts and seeds with CLIP as it is at that step."""

from pathlib import Path

import torch

from clipgraft.console import say
from clipgraft.errors import UserError
from clipgraft.generation.contact_sheet import FAILURES
from clipgraft.generation.generator import load_generators
from clipgraft.generation.requests import image_requests
from clipgraft.models.clip import ClipParts
from clipgraft.settings import GenerateSettings
from clipgraft.training.trainer import StepReport


class Samples:
    """Generates images every so many steps; training's weights and random state stay as they are.

    Args:
        clip: The model in training; its text tower takes the place of the graft's.
        graft: Folder with the bridge, and the record of the base.
        settings: What to generate, and how.
        folder: Gets `step-<step>/<number>.png`; failures are reported.
        every: Steps between previews.
        device: Where to generate.

    Raises:
        ValueError: If the graft's text tower has another shape.
    """

    def __init__(
        self,
        clip: ClipParts,
        graft: Path,
        settings: GenerateSettings,
        folder: Path,
        every: int,
        device: torch.device,
    ):
        self.clip, self.folder, self.every = clip, folder, every
        self.requests = image_requests(settings.prompts, settings)
        self.batch_size = settings.batch_size
        _, self.generator = next(load_generators({"graft": graft}, device=device.type, inference=settings))
        self._take_weights()

    def __call__(self, report: StepReport) -> None:
        """Generate images if it is time to."""
        if report.step % self.every:
            return
        self._take_weights()
        folder = self.folder / f"step-{report.step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        images = self.generator.sample(self.requests, batch_size=self.batch_size)
        for number, image in enumerate(images):
            if image.status == "ok":
                image.image.save(folder / f"{number}.png")
            else:
                reason = FAILURES[image.status]
                say(f"step {report.step}, image {number} of {image.prompt[:60]!r} was not written: {reason}")

    def _take_weights(self) -> None:
        tower = self.generator.pipeline.text_encoder.text_model
        self.generator.prompt_embeds.clear()
        try:
            tower.load_state_dict(self.clip.model.text_model.state_dict())
        except RuntimeError as error:
            raise UserError(
                "preview_graft was made for a text tower of another shape; name a graft of this CLIP"
            ) from error
