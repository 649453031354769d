"""Compare what a base generates with CLIP before and after fine-tuning, from equal seeds.

python examples/compare_before_and_after.py photos/ --tuned runs/tuned/clip
"""

import argparse

import clipgraft as cg


def main(
    folder: str, tuned: str, *, clip: str = "flatland", base: str = "flatland", num_prompts: int = 32
) -> None:
    data, frozen = cg.load_dataset(folder), cg.load_base(base)
    before = cg.fit_bridge(cg.load_clip(clip), frozen, data).graft
    after = cg.fit_bridge(cg.load_clip(tuned), frozen, data).graft

    variants = {"before": before, "after": after}
    evaluation = cg.evaluate(variants, frozen, data, scorer=cg.load_clip(clip), num_prompts=num_prompts)

    print(evaluation.table())
    for difference in evaluation.difference("before", "after"):
        print(f"{difference.metric}: {difference.value:+.3f}, 95 % interval {difference.interval}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--tuned", required=True, help="folder of the fine-tuned CLIP")
    parser.add_argument("--clip", default="flatland", help="the CLIP that it was tuned from")
    parser.add_argument("--base", default="flatland")
    options = parser.parse_args()
    main(options.folder, options.tuned, clip=options.clip, base=options.base)
