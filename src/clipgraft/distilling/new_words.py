"""New words: seen by CLIP in images, unused by the base."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from rich.table import Table

from clipgraft.bridging.fit import stage_output
from clipgraft.config import ModelSettings, Recipe
from clipgraft.console import print_line, print_table
from clipgraft.data.caption_words import COMMENT
from clipgraft.data.dataset import CaptionDataset, CaptionedImage
from clipgraft.data.formats import load_dataset
from clipgraft.device import choose_device, put_back, quiet_libraries
from clipgraft.distilling.word_worth import (
    NAME_WORDS,
    BaseErrors,
    ClipCosines,
    Estimate,
    NoWordsError,
    Use,
    find_uses,
)
from clipgraft.errors import UserError, printable
from clipgraft.files import write_bytes
from clipgraft.models.base import FrozenBase
from clipgraft.models.clip import ClipParts, load_clip
from clipgraft.models.graft import Graft
from clipgraft.runs.run import StageResult

WORDS_NAME = "words.txt"
CAPTIONS_PER_WORD = 128
"""Of as many images, for CLIP, which is fast."""
MOST_CAPTIONS, FEWEST_CAPTIONS = 64, 16
"""Of as many images, for the base: the fewest show most words to be used. A word in fewer is not measured."""
MOST_IMAGES = 20_000
"""Looked through for captions, in memory (a guess: any word worth teaching is in 16 of them)."""
SEEN, NEEDED = 0.05, 0.03
"""Shares of a whole caption's worth, alone and left out: half and a third of a word's in a caption of ten."""
LESS_USED = 0.25
"""Share of what CLIP loses without a word. Of a word that it knows a base loses as much or more."""
IDLE = 0.1
"""Share either way. A word that a base knows does most alone, harm too; a new one is a little noise."""


class WordWorth(BaseModel):
    """Worth of one word as shares of a whole caption's."""

    model_config = ConfigDict(frozen=True)

    word: str
    num_captions: int
    """Measured ones."""
    example: str
    clip_alone: Estimate
    """The word alone, to CLIP."""
    clip_left_out: Estimate
    """What CLIP loses without the word."""
    base_left_out: Estimate | None = None
    """None: CLIP does not see the word."""
    base_alone: Estimate | None = None
    """None: the base may need the word."""

    @property
    def is_seen(self) -> bool:
        """Whether CLIP surely sees the word, alone and in its caption."""
        return self.clip_alone.low > SEEN and self.clip_left_out.low > NEEDED

    @property
    def most_lost(self) -> float:
        """Most that a base loses without a new word."""
        return LESS_USED * self.clip_left_out.mean

    @property
    def is_left_out(self) -> bool:
        """Whether the base surely loses next to nothing without the word."""
        return self.base_left_out is not None and self.base_left_out.high < self.most_lost

    @property
    def is_undecided(self) -> bool:
        """Whether more captions could show that."""
        left_out = self.base_left_out
        return left_out is not None and left_out.low < self.most_lost <= left_out.high

    @property
    def is_new(self) -> bool:
        """Whether CLIP sees the word, and the base does not use it."""
        is_idle = self.base_alone is not None and abs(self.base_alone.mean) < IDLE
        return self.is_seen and self.is_left_out and is_idle


class NewWords(StageResult):
    """Words of captions with their worth, new ones among them."""

    stage: str = "new_words"
    measured: tuple[WordWorth, ...]

    @property
    def new(self) -> tuple[WordWorth, ...]:
        """The new words, those first that CLIP sees best."""
        return tuple(
            sorted(filter(lambda each: each.is_new, self.measured), key=lambda each: -each.clip_alone.mean)
        )

    @property
    def words(self) -> frozenset[str]:
        """The new words in lower case."""
        return frozenset(each.word for each in self.new)

    def refuse_none(self) -> None:
        """Raise UserError if there is no new word."""
        if not self.words:
            raise UserError(
                "no new word found, so a distilled text encoder would be the base's own; name words yourself "
                "(--new-words FILE), or leave distilling out"
            )

    def print(self) -> None:
        """Print the new words with their figures and an example each."""
        num_seen = sum(each.is_seen for each in self.measured)
        print_line(
            f"{len(self.measured)} words in captions; {num_seen} that CLIP sees in images; "
            f"{len(self.new)} of those new: unused by the base"
        )
        if not num_seen:
            print_line(
                "nothing to distil: CLIP surely sees no word; fine-tune it for longer, or on more images"
            )
            return
        if not self.new:
            print_line("nothing to distil: what CLIP sees by words the base uses already")
            return
        table = Table("word", "CLIP, alone", "left out", "base, alone", "left out", "example")
        for each in self.new:
            worth = (each.clip_alone, each.clip_left_out, each.base_alone, each.base_left_out)
            table.add_row(each.word, *map(_interval, worth), printable(each.example))
        print_table(table)

    def write_list(self, path: Path) -> None:
        """Write the new words to a file, for `read_words` and an editor."""
        lines = [
            f"{COMMENT} Words that CLIP sees in images and the base does not use: one per line.",
            f"{COMMENT} Figures: what is lost without the word, as a share of a caption, ± 95 %.",
        ]
        width = max((len(each.word) for each in self.new), default=0)
        for each in self.new:
            figures = f"CLIP {_interval(each.clip_left_out)}, base {_interval(each.base_left_out)}"
            lines.append(f"{each.word:{width}}  {COMMENT} {figures}: {printable(each.example)}")
        write_bytes(path, "".join(f"{line}\n" for line in lines).encode())


def find_new_words(
    clip: ClipParts,
    base: FrozenBase,
    data: CaptionDataset,
    *,
    seed: int = 0,
    device: str = "auto",
    max_images: int = 0,
) -> NewWords:
    """Measure which words CLIP sees in images and a base ignores.

    Each word is measured in captions of the train split, with and without it: by CLIP's image-text cosine and
    by the error of the noise that the U-Net predicts with the base's own text encoder.

    Args:
        clip: The fine-tuned CLIP.
        base: From `load_base`, at least with its VAE; the rest is loaded from where it came from.
        data: Captioned images; a word in captions of fewer than 16 of them is not measured.
        seed: Of the choice of captions.
        device: "auto", "cpu", "cuda" or "mps".
        max_images: Use the first n training images only; 0 = the first 20,000.

    Raises:
        UserError: If no word is in the captions of 16 images, or CLIP sees none.
        CheckpointError: If the base does not predict the noise.
    """
    images = data.train.first(max_images or MOST_IMAGES)
    with put_back(clip.model):
        clip.model.to(choose_device(device)).eval()
        found, uses = clip_worths(clip, images, seed=seed)
    if not found:
        raise NoWordsError(
            f"no word is in captions of {FEWEST_CAPTIONS} training images or more, of {len(images)} in all",
            f"give more images, or {NAME_WORDS}",
        )
    if any(each.is_seen for each in found.values()):
        _measure_use(found, uses, BaseErrors(base, images, device))
    return NewWords(measured=tuple(found.values()))


def clip_worths(
    clip: ClipParts, images: Sequence[CaptionedImage], *, seed: int = 0
) -> tuple[dict[str, WordWorth], dict[str, list[Use]]]:
    """Measure the worth of words to a CLIP; return their uses too."""
    uses = find_uses(images, at_least=FEWEST_CAPTIONS, at_most=CAPTIONS_PER_WORD, seed=seed)
    if not uses:
        return {}, {}
    cosines = ClipCosines(clip, images, uses)
    alone, left_out = cosines.alone(), cosines.left_out()
    found = {
        word: WordWorth(
            word=word,
            num_captions=len(each),
            example=each[0].caption,
            clip_alone=Estimate.of(alone[word]),
            clip_left_out=Estimate.of(left_out[word]),
        )
        for word, each in uses.items()
    }
    return found, uses


def _measure_use(found: dict[str, WordWorth], uses: Mapping[str, Sequence[Use]], errors: BaseErrors) -> None:
    """Add the base's worth of words that CLIP sees, where needed."""
    seen = [word for word in found if found[word].is_seen]
    errors.set_scale(use for word in seen for use in uses[word][:FEWEST_CAPTIONS])
    for count in (FEWEST_CAPTIONS, MOST_CAPTIONS):
        for word, values in errors.left_out({word: uses[word][:count] for word in seen}).items():
            found[word] = found[word].model_copy(update={"base_left_out": Estimate.of(values)})
        seen = [word for word in seen if found[word].is_undecided]
    unneeded = {word: uses[word][:MOST_CAPTIONS] for word in found if found[word].is_left_out}
    for word, values in errors.alone(unneeded).items():
        found[word] = found[word].model_copy(update={"base_alone": Estimate.of(values)})


def find_recipe_words(recipe: Recipe, data: CaptionDataset | None = None) -> NewWords:
    """Find a recipe's new words; see `find_new_words`."""
    quiet_libraries()
    data = data or load_dataset(recipe.data)
    clip = load_clip(recipe.clip.name, revision=recipe.clip.revision)
    base = FrozenBase.load(
        recipe.base.name,
        revision=recipe.base.revision,
        components=("vae", "scheduler", "tokenizer"),
        tokenizer=clip.tokenizer,
    )
    return find_new_words(
        clip,
        base,
        data,
        seed=recipe.seed,
        device=recipe.device,
        max_images=recipe.data.max_train_images,
    )


def words_stage(
    recipe: Recipe, output_dir: Path, *, resume: bool = False, overwrite: bool = False
) -> NewWords:
    """Find a recipe's new words as a stage of a whole run.

    Args:
        recipe: Of the fine-tuned CLIP.
        output_dir: Gets `metrics.json` and, if a word is new, `words.txt`. Words that cannot be measured are
            none: the run goes on.
        resume: As in `fit_bridge`; measured again.
        overwrite: See there.
    """
    with stage_output(output_dir, recipe, "new_words", {}, resume, overwrite) as folder:
        try:
            found = find_recipe_words(recipe)
            found.print()
        except NoWordsError as error:
            found = NewWords(measured=())
            print_line(error.reason)
        if found.words:
            found.write_list(folder / WORDS_NAME)
        found.save(folder)
    return found


def words_for(graft: Graft, data: CaptionDataset | Sequence[str], recipe: Recipe) -> tuple[str, ...]:
    """Find and print what a base is to learn from a graft.

    Raises:
        UserError: If no word is new, the data has no images, or the graft does not name its CLIP.
    """
    if not isinstance(data, CaptionDataset):
        raise UserError("new words are found by images; give --data, or name the words (--new-words FILE)")
    found = find_recipe_words(recipe.model_copy(update={"clip": clip_of(graft)}), data)
    found.print()
    found.refuse_none()
    return tuple(sorted(found.words))


def clip_of(graft: Graft) -> ModelSettings:
    """Return the CLIP that a graft was made of.

    Raises:
        UserError: If the graft does not say.
    """
    made = graft.lineage.find("bridge")
    if made is None or made.recipe is None or made.clip_given:
        raise UserError(
            "the graft does not say which CLIP it was made of; find its new words with `clipgraft new-words "
            "--clip`"
        )
    return made.recipe.clip


def _interval(estimate: Estimate | None) -> str:
    assert estimate
    return f"{estimate.mean:.3f} ± {estimate.high - estimate.mean:.3f}"
