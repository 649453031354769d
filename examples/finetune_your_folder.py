"""Fine-tune CLIP on a folder of captioned images.

python examples/finetune_your_folder.py photos/ --clip openai/clip-vit-base-patch32 --out runs/tuned
"""

import argparse

import clipgraft as cg


def main(folder: str, *, clip: str = "flatland", output_dir: str | None = None, **settings: object) -> None:
    data = cg.load_dataset(folder)
    print(f"{len(data.train)} images to train on, {len(data.val)} to validate, {len(data.test)} to test")
    print(f"{len(data.excluded)} images or captions left out")

    # Keyword arguments are the fields of clipgraft.settings.FinetuneSettings; output_dir=None writes nothing.
    result = cg.finetune(cg.load_clip(clip), data, output_dir=output_dir, **settings)

    print("mean loss of each epoch:", [round(loss, 3) for loss in result.epoch_mean_loss])
    if result.recall_before and result.recall_after:  # there is a test split
        for name, value in result.recall_before.items():
            print(f"{name}: {value} -> {result.recall_after[name]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--clip", default="flatland")
    parser.add_argument("--out")
    parser.add_argument("--epochs", type=int, default=9)
    options = parser.parse_args()
    main(options.folder, clip=options.clip, output_dir=options.out, num_epochs=options.epochs)
