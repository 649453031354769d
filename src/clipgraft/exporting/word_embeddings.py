"""New words of a distilled text encoder as textual inversion embeddings.

Distilling puts most of what it learns of a word into its tokens' vectors, and no other prompt has these.
"""

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from clipgraft.errors import UserError
from clipgraft.generation.embedding_files import A1111_KEY
from clipgraft.models.graft import Graft

SUFFIX = ".safetensors"


def word_vectors(distilled: Graft) -> dict[str, Tensor]:
    """Return each new word's vectors (tokens, W), float32.

    Raises:
        UserError: If it is not recorded which words the text encoder learned.
    """
    stage = distilled.lineage.find("distill")
    words = [word for word, count in stage.words.items() if count] if stage else []
    if not words:
        raise UserError(
            "it is not recorded which words the text encoder learned, and each has a file of its own; export "
            "the text encoder as diffusers, checkpoint or lora"
        )
    table = distilled.text_encoder.get_input_embeddings().weight.detach().float()
    return {word: table[_token_ids(distilled, word)].clone() for word in words}


def write_embeddings(distilled: Graft, folder: Path) -> list[str]:
    """Write a file for each new word; return the words."""
    vectors = word_vectors(distilled)
    for word, rows in vectors.items():
        save_file({A1111_KEY: rows}, folder / f"{word}{SUFFIX}")
    return [*vectors]


def _token_ids(distilled: Graft, word: str) -> list[int]:
    ids: list[int] = distilled.tokenizer(word, add_special_tokens=False).input_ids
    return ids
