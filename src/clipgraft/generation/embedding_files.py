"""Textual inversion embeddings: words of a prompt with vectors of their own.

An embedding takes one position for each of its vectors. N vectors, W width of the text encoder's embeddings.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from clipgraft.errors import CheckpointError, MissingFileError, UserError
from clipgraft.generation.request_files import file_state
from clipgraft.models.loading import read_weights, refuse_pickled_file
from clipgraft.sampling_params import MAX_FILES, EmbeddingFile

A1111_KEY = "emb_params"
"""Of the only tensor in A1111's files, whose word is the file's name."""
SDXL_KEYS = {"clip_l", "clip_g"}
MAX_VECTORS = 75
"""A chunk of a prompt; an embedding lies within one."""


class Embeddings:
    """Words with vectors, found in prompts by name.

    Args:
        files: What a request names.

    Raises:
        MissingFileError: If a file does not exist.
        CheckpointError: If it is no embedding.
        UserError: If two have one word.
    """

    def __init__(self, files: Sequence[EmbeddingFile]) -> None:
        self.vectors: list[Tensor] = []
        """(W,) each; files may be of different widths until they are used."""
        self.ids: dict[str, list[int]] = {}
        """Of a word's vectors, by the word in lower case; negative, to differ from a tokenizer's."""
        self.files = [Path(each.file) for each in files]
        for path in self.files:
            for word, vectors in read_embedding(path).items():
                if word.lower() in self.ids:
                    raise UserError(f"two embeddings are called {word!r}; leave one out, or rename its file")
                first = len(self.vectors) + 1
                self.ids[word.lower()] = [-number for number in range(first, first + len(vectors))]
                self.vectors += vectors
        self._pattern = words_pattern(self.ids)

    def split(self, text: str) -> Iterator[str | list[int]]:
        """Yield the parts of a text, for words with vectors their ids."""
        position = 0
        for found in self._pattern.finditer(text):
            yield text[position : found.start()]
            yield self.ids[found[0].lower()]
            position = found.end()
        yield text[position:]

    def unused(self, texts: Iterable[str]) -> list[str]:
        """Return the words that no text names."""
        named = {found[0].lower() for text in texts for found in self._pattern.finditer(text)}
        return [word for word in self.ids if word not in named]

    def without_words(self, text: str) -> str:
        """Return a text without the words that have vectors."""
        return self._pattern.sub(" ", text)

    @contextmanager
    def in_place(self, text_encoder: nn.Module, input_ids: Tensor) -> Iterator[Tensor]:
        """Let a text encoder see vectors at the positions of their ids.

        Args:
            text_encoder: Its weights stay as they are.
            input_ids: (B, L), with negative ids.

        Yields:
            Ids to encode meanwhile, (B, L).

        Raises:
            CheckpointError: If the vectors are of another width than the encoder's.
        """
        places = input_ids < 0
        if not places.any():
            yield input_ids
            return
        embedding = _token_embedding(text_encoder)
        width = embedding.weight.shape[1]
        vectors = [self.vectors[-int(number) - 1] for number in input_ids[places]]
        for vector in vectors:
            if len(vector) != width:
                raise CheckpointError(
                    f"{', '.join(path.name for path in self.files)}: an embedding is {len(vector)} wide, and "
                    f"this text encoder takes {width}; take one for this base, or leave it out"
                )

        def replace(_module: nn.Module, _inputs: object, states: Tensor) -> Tensor:
            replaced = states.clone()
            replaced[places] = torch.stack(vectors).to(states)
            return replaced

        hook = embedding.register_forward_hook(replace)
        try:
            yield input_ids.clamp(min=0)
        finally:
            hook.remove()


def embedding_path(path: Path) -> Path:
    """Return an embedding's file.

    Raises:
        MissingFileError: If it does not exist.
        CheckpointError: If it is pickled, or no `.safetensors` file.
    """
    if not path.is_file():
        raise MissingFileError(f"no embedding at {path}; name a .safetensors file")
    refuse_pickled_file(path, "embedding")
    if path.suffix.lower() != ".safetensors":
        raise CheckpointError(f"{path} is not a .safetensors file; name one with an embedding")
    return path


def read_embedding(path: Path) -> dict[str, Tensor]:
    """Read a file's words with their vectors (N, W), float32.

    Raises:
        MissingFileError: If it does not exist.
        CheckpointError: If it is no embedding, or for SDXL.
    """
    return _read(embedding_path(path), *file_state(path))


@lru_cache(MAX_FILES)
def _read(path: Path, *_state: int) -> dict[str, Tensor]:
    tensors = read_weights([path])
    if SDXL_KEYS & tensors.keys():
        raise CheckpointError(
            f"{path} is an embedding for SDXL ({', '.join(tensors)}); take one for this base"
        )
    if any("lora" in key for key in tensors):
        raise CheckpointError(f"{path} is a LoRA, not an embedding; name it with --lora")
    if any(key.startswith(("image_proj.", "ip_adapter.")) for key in tensors):
        raise CheckpointError(f"{path} is an IP-Adapter, not an embedding; name it with --ip-adapter")
    if not 0 < len(tensors) <= MAX_FILES:
        raise CheckpointError(f"{path} is no embedding: it holds {len(tensors)} tensors; take another file")
    words = {}
    for key, tensor in tensors.items():
        if tensor.ndim not in (1, 2) or not key.strip() or not tensor.numel():
            raise CheckpointError(
                f"{path} is no embedding: {key!r} has the shape {tuple(tensor.shape)}, not (vectors, width)"
            )
        vectors = tensor.float().reshape(-1, tensor.shape[-1])
        if len(vectors) > MAX_VECTORS:
            raise CheckpointError(
                f"{path} is an embedding of {len(vectors)} vectors, and {MAX_VECTORS} fit into a prompt"
            )
        words[path.stem if key == A1111_KEY else key.strip()] = vectors
    return words


def words_pattern(words: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern of whole words in any case, longest first."""
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile("|".join(map(_whole_word, longest_first)) or r"(?!)", re.IGNORECASE)


def _whole_word(word: str) -> str:
    """Pattern of a word, not of a part of a longer one."""
    before = r"(?<!\w)" if word[0].isalnum() else ""
    after = r"(?!\w)" if word[-1].isalnum() else ""
    return f"{before}{re.escape(word)}{after}"


def _token_embedding(text_encoder: nn.Module) -> nn.Embedding:
    return next(
        module
        for name, module in text_encoder.named_modules()
        if isinstance(module, nn.Embedding) and name.endswith("token_embedding")
    )
