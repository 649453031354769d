"""Fine-tune CLIP with a loss of your own, written as an nn.Module.

python examples/your_own_loss.py photos/ --out runs/hardest
"""

import argparse

from torch import Tensor

import clipgraft as cg


class HardestNegative(cg.ContrastiveObjective):
    """Max-margin loss against the hardest negative image of each caption (VSE++, Faghri et al. 2018)."""

    margin = 0.2

    def joint_loss(self, embeds: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        cosines = embeds["text_embeds"] @ embeds["image_embeds"].T  # (captions, images)
        is_own = embeds["caption_image"][:, None] == embeds["image_index"]
        positive = cosines[is_own]
        hardest = cosines.masked_fill(is_own, -1).amax(1)
        loss = (self.margin + hardest - positive).clamp(min=0).mean()
        return loss, {"positive_cosine": positive.detach().mean()}


def main(folder: str, *, clip: str = "flatland", output_dir: str | None = None, **settings: object) -> None:
    data = cg.load_dataset(folder)
    # Gradient accumulation, several processes, resuming and validation work as with the built-in losses.
    result = cg.finetune(
        cg.load_clip(clip), data, objective=HardestNegative, output_dir=output_dir, **settings
    )
    print("mean loss of each epoch:", [round(loss, 3) for loss in result.epoch_mean_loss])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--clip", default="flatland")
    parser.add_argument("--out")
    options = parser.parse_args()
    main(options.folder, clip=options.clip, output_dir=options.out)
