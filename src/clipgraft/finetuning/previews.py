"""Pictures on the way: the same prompts and seeds, drawn with CLIP as it is at that step."""

from pathlib import Path

import torch

from clipgraft.config import GenerateSettings
from clipgraft.console import say
from clipgraft.errors import UserError
from clipgraft.generation.contact_sheet import STATUS_NOTES
from clipgraft.generation.generate import jobs_of, speed_of
from clipgraft.generation.generator import load_generators
from clipgraft.models.clip import ClipParts
from clipgraft.training.trainer import StepReport


class Samples:
    """Draws after every so many steps; training's weights and random state stay as they are.

    Args:
        clip: The model in training; its text tower takes the place of the graft's.
        graft: Folder with the bridge, and the record of the base.
        settings: What to draw, and how.
        folder: Gets `step-<step>/<number>.png`, a picture a job; of one that failed it is said.
        every: Steps from one time to the next.
        device: Where to draw.

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
        self.jobs, self.batch_size = jobs_of(settings), settings.batch_size
        _, self.generator = next(
            load_generators({"graft": graft}, device=device.type, speed=speed_of(settings))
        )
        self._take_weights()

    def __call__(self, report: StepReport) -> None:
        """Draw where it is time to."""
        if report.step % self.every:
            return
        self._take_weights()
        folder = self.folder / f"step-{report.step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(self.generator.draw(self.jobs, batch_size=self.batch_size)):
            if picture.status == "ok":
                picture.image.save(folder / f"{number}.png")
            else:
                reason = STATUS_NOTES[picture.status]
                say(f"step {report.step}, picture {number} of {picture.prompt[:60]!r} is not there: {reason}")

    def _take_weights(self) -> None:
        tower = self.generator.pipeline.text_encoder.text_model
        self.generator.states.forget()
        try:
            tower.load_state_dict(self.clip.model.text_model.state_dict())
        except RuntimeError as error:
            raise UserError(
                "preview_graft was made for a text tower of another shape; name a graft of this CLIP"
            ) from error
