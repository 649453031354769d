"""Cards of exports: what each holds, how to load it, its recipe."""

from clipgraft.config import to_toml
from clipgraft.exporting.lora_file import LoraErrors
from clipgraft.models.graft import Graft
from clipgraft.reporting.model_card import distilled_card, figures_table, graft_card, public_recipe

GRAFT_PIPELINE = """\
A pipeline in diffusers layout. It loads where `clipgraft` is installed:

    import clipgraft
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained("THIS FOLDER")"""
PLAIN_PIPELINE = """\
A pipeline in diffusers layout. Plain diffusers loads it:

    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained("THIS FOLDER")"""
PROMPT_EMBEDS = """\
`prompt_embeds.safetensors`: `prompt_embeds` and `negative_prompt_embeds`, each (prompts, 77, width) float32,
for the prompts in `prompts.json`, in order. Any stock pipeline of the base takes them, without `clipgraft`:

    from safetensors.torch import load_file

    embeds = load_file("prompt_embeds.safetensors")
    images = pipeline(**{name: rows[:1] for name, rows in embeds.items()}).images"""
BRIDGE = """\
`bridge.safetensors` and `config.json`: the map from CLIP's hidden states (after its final layer norm) to the
base's prompt embeds, `clipgraft.models.bridge.Bridge`, without CLIP. `empty_states` (77, width) are the
base's own embeds of the empty prompt and replace the mapped ones; their first row is that of every prompt."""
CHECKPOINT = """\
`{name}`: the whole model in one file, with the key names of Stable Diffusion v1's original code.

| tool | where the file goes |
| --- | --- |
| A1111, Forge | `models/Stable-diffusion/` |
| ComfyUI | `models/checkpoints/` |
| InvokeAI | the model manager, *Add models* |
| diffusers | `StableDiffusionPipeline.from_single_file("{name}")` |"""
LORA = """\
`{name}`: a LoRA of rank {rank} for the base's text encoder, to be used at strength 1; it does not change the
U-Net. Embeddings, layer norms and biases are not in it.

| tool | how |
| --- | --- |
| A1111, Forge | into `models/Lora/`, and `<lora:{stem}:1>` in the prompt |
| ComfyUI | into `models/loras/`, and a *Load LoRA* node with `strength_clip` 1 |
| InvokeAI | the model manager, *Add models* |
| diffusers | `pipeline.load_lora_weights("{name}")` |

Relative error of word states against those of the distilled text encoder (0: the same), on {num_captions:,}
captions:

{errors}"""
EMBEDDINGS = """\
A textual inversion embedding for each new word, in a file of its name: {words}. They change neither the text
encoder nor the U-Net, and no prompt without these words.

| tool | how |
| --- | --- |
| A1111, Forge | into `embeddings/`, and the word in the prompt |
| ComfyUI | into `models/embeddings/`, and `embedding:{word}` in the prompt |
| InvokeAI | the model manager, *Add models*, and `<{word}>` in the prompt |
| diffusers | `pipeline.load_textual_inversion("{word}.safetensors", token="<{word}>")` |
| clipgraft | `--embedding {word}.safetensors`, and the word in the prompt |"""


def lora_content(name: str, rank: int, errors: LoraErrors) -> str:
    """Return what a LoRA's card says of it."""
    stem = name.removesuffix(".safetensors")
    rows = figures_table(errors.rows)
    return LORA.format(name=name, stem=stem, rank=rank, num_captions=errors.num_captions, errors=rows)


def embeddings_content(words: list[str]) -> str:
    """Return what a card says of embeddings."""
    return EMBEDDINGS.format(words=", ".join(words), word=words[0])


def recipe_of(graft: Graft) -> str:
    """Return the last stage's settings in TOML; empty if unknown."""
    find = graft.lineage.find
    last = find("distill") or find("refine") or find("bridge")
    # Not as a Recipe, which would turn bare names into local paths again.
    return to_toml(public_recipe(last.recipe.model_dump(exclude_none=True))) if last and last.recipe else ""


def card(graft: Graft, content: str, *, has_safety_checker: bool = False, recipe: str = "") -> str:
    """Return the card of a graft's or distilled text encoder's export.

    Args:
        graft: What is exported.
        content: What the export holds.
        has_safety_checker: Whether it holds the base's.
        recipe: Settings to put into the card, where there is no file of them.
    """
    if graft.is_distilled:
        return distilled_card(
            content, graft.base, graft.lineage, has_safety_checker=has_safety_checker, recipe=recipe
        )
    return graft_card(content, graft.base, graft.lineage, has_safety_checker=has_safety_checker)
