"""CLIP tokenizers: load, train, and report unread parts of prompts."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

from clipgraft.data.dataset import CONTEXT_LENGTH
from clipgraft.data.transforms import END_OF_WORD, encode_whole
from clipgraft.errors import CheckpointError
from clipgraft.files import read_text
from clipgraft.models.configs import Checked, TokenizerConfig, loading, read_config

EXAMPLE = "A dog, 2 boats & the sea's edge"


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """Load a CLIP tokenizer from a folder.

    Raises:
        CheckpointError: If it is missing or damaged, or ids or merges do not fit the vocabulary; names the
            file.
    """
    source = next(
        (folder / name for name in ("tokenizer.json", "vocab.json") if (folder / name).is_file()), None
    )
    if source is None:
        raise CheckpointError(f"{folder} holds no tokenizer (tokenizer.json, or vocab.json with merges.txt)")
    for name in ("special_tokens_map.json", "added_tokens.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            read_config(folder / name, TokenizerConfig if name == "tokenizer_config.json" else Checked)
    _check_byte_pairs(source)
    with loading(source, "CLIPTokenizer"):
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        ids = tokenizer(EXAMPLE).input_ids
    if sorted(tokenizer.get_vocab().values()) != list(range(len(tokenizer))):
        raise CheckpointError(f"{source}: token ids are not 0 to {len(tokenizer) - 1}; fetch it again")
    if (ids[0], ids[-1]) != (tokenizer.bos_token_id, tokenizer.eos_token_id):
        raise CheckpointError(
            f"{source} sets no BOS and EOS around a caption, as CLIP's does; fetch it again"
        )
    return tokenizer


def _check_byte_pairs(source: Path) -> None:
    """Check unique ids and merges within the vocabulary; libraries do not."""
    content = read_config(source, Checked)
    if source.name == "tokenizer.json":
        model = content.get("model")
        if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
            raise CheckpointError(
                f"{source} holds no byte pairs (BPE), which CLIP's tokenizer is; fetch it again"
            )
        vocab, merges = model.get("vocab"), model.get("merges")
    else:
        lines = read_text(source.with_name("merges.txt"), error=CheckpointError).splitlines()
        vocab, merges = content, [line for line in lines if line and not line.startswith("#version")]
    vocab = vocab if isinstance(vocab, dict) else {}
    ids = list(vocab.values())
    if not ids or any(type(index) is not int for index in ids) or len(set(ids)) < len(ids):
        raise CheckpointError(f"{source} is damaged: its vocabulary is no list of tokens with an id each")
    for merge in merges if isinstance(merges, list) else [None]:
        pair: Any = merge.split(" ") if isinstance(merge, str) else merge
        is_pair = isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)
        if not is_pair or not {*pair, "".join(pair)} <= vocab.keys():
            raise CheckpointError(
                f"{source} is damaged: its merge {str(merge)[:60]!r} is no pair of tokens of its vocabulary"
            )


def train_tokenizer(captions: Iterable[str], *, vocab_size: int) -> CLIPTokenizer:
    """Learn byte pairs from captions, with CLIP's layout of the vocabulary.

    The order is bytes, word-final bytes, merges, BOS, EOS: any text can be encoded, and EOS has the highest
    id, as older CLIP code expects. The tokenizer lower-cases and pads with EOS, as CLIP's does.

    Args:
        captions: Training texts.
        vocab_size: Maximum number of tokens; fewer if fewer pairs occur twice.
    """
    blank = CLIPTokenizer()
    backend = blank.backend_tokenizer
    backend.model = BPE(end_of_word_suffix=END_OF_WORD)
    alphabet = sorted(ByteLevel.alphabet())
    endings = [letter + END_OF_WORD for letter in alphabet]
    trainer = BpeTrainer(
        vocab_size=vocab_size - 2,
        min_frequency=2,
        initial_alphabet=alphabet,
        # Fixed here: else a hash map orders them, and equal captions give different vocabularies.
        special_tokens=endings,
        end_of_word_suffix=END_OF_WORD,
        show_progress=False,
    )
    backend.train_from_iterator(captions, trainer)
    merges = _merges(backend)
    tokens = [*alphabet, *endings]
    tokens += dict.fromkeys("".join(pair) for pair in merges[: vocab_size - len(tokens) - 2])
    tokens += [blank.bos_token, blank.eos_token]
    vocab = {token: index for index, token in enumerate(tokens)}
    kept = [pair for pair in merges if "".join(pair) in vocab]
    return CLIPTokenizer(vocab=vocab, merges=kept, model_max_length=CONTEXT_LENGTH)


def _merges(backend: Tokenizer) -> list[tuple[str, str]]:
    """Return the learned merges in order; only the backend's JSON holds them."""
    return [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]


def unknown_words(text: str, tokenizer: CLIPTokenizer) -> list[str]:
    """Return the words absent from the vocabulary as wholes, without repetition."""
    backend = tokenizer.backend_tokenizer
    normalized = backend.normalizer.normalize_str(text)
    words = backend.pre_tokenizer.pre_tokenize_str(normalized)
    return list(
        dict.fromkeys(
            normalized[a:b] for word, (a, b) in words if backend.token_to_id(word + END_OF_WORD) is None
        )
    )


def cut_off(text: str, tokenizer: CLIPTokenizer) -> str:
    """Return the end of a text beyond the text encoder's last position."""
    places = tokenizer(
        text, truncation=False, verbose=False, split_special_tokens=True, return_offsets_mapping=True
    ).offset_mapping
    unread = places[tokenizer.model_max_length - 1 : -1]
    # Cut from the text itself: a vocabulary trained here would be decoded with its end-of-word marks.
    return text[unread[0][0] :].strip() if unread else ""


def prompt_notes(prompt: str, tokenizer: CLIPTokenizer, *, is_cut: bool = True) -> list[str]:
    """Report what a tokenizer cannot read: a prompt's end, unknown words."""
    if not prompt.strip():
        return ["the prompt is empty: generated without one"]
    notes = []
    if is_cut and (unread := cut_off(prompt, tokenizer)):
        num_tokens = len(encode_whole([prompt], tokenizer)[0])
        notes.append(f"{num_tokens} tokens, {tokenizer.model_max_length} are read; cut off: {unread!r}")
    unknown = unknown_words(prompt, tokenizer)
    if unknown:
        notes.append(f"not in the vocabulary, so read in pieces: {', '.join(unknown)}")
    return notes
