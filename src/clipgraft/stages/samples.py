"""Pictures on the way: the same prompts and seeds, drawn with CLIP as it is at that step."""

from pathlib import Path

import torch

from clipgraft.config import GenerateSettings
from clipgraft.generation.generator import load_generators
from clipgraft.generation.jobs import Job
from clipgraft.models.clip import ClipParts
from clipgraft.training.loop import StepReport


class Samples:
    """Draws after every so many steps; training's weights and random state stay as they are.

    Args:
        clip: The model in training; its text tower takes the place of the graft's.
        graft: Folder with the bridge, and the record of the base.
        settings: Prompts, seed, steps and guidance.
        folder: Gets `step-<step>/<number>.png`, a picture a prompt.
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
        self.clip, self.settings, self.folder, self.every = clip, settings, folder, every
        _, self.generator = next(load_generators({"graft": graft}, device=device.type))
        self._take_weights()

    def __call__(self, report: StepReport) -> None:
        """Draw where it is time to."""
        if report.step % self.every:
            return
        self._take_weights()
        settings = self.settings
        jobs = [
            Job(
                prompt,
                settings.seed,
                num_inference_steps=settings.num_inference_steps,
                guidance_scale=settings.guidance_scale,
            )
            for prompt in settings.prompts
        ]
        folder = self.folder / f"step-{report.step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        pictures = self.generator.draw(jobs, batch_size=settings.batch_size)
        for number, picture in enumerate(pictures):
            picture.image.save(folder / f"{number}.png")

    def _take_weights(self) -> None:
        tower = self.generator.pipeline.text_encoder.text_model
        self.generator.states.forget()
        try:
            tower.load_state_dict(self.clip.model.text_model.state_dict())
        except RuntimeError as error:
            raise ValueError(
                "samples_graft was made for a text tower of another shape; name a graft of this CLIP"
            ) from error
