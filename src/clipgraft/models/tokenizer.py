"""A CLIP tokenizer of one's own: CLIP's class and rules, with byte pairs learned from given captions."""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

from clipgraft.data.transforms import END_OF_WORD


def train_tokenizer(captions: Iterable[str], *, vocab_size: int, context_length: int = 77) -> CLIPTokenizer:
    """Learn byte pairs from captions.

    The vocabulary is laid out as CLIP's: every byte, every byte that ends a word, the merges, BOS, EOS; so
    any text can be encoded, and EOS has the highest id, where older CLIP code looks for it.

    Args:
        captions: Texts to learn from.
        vocab_size: Most tokens in all; fewer where the captions hold fewer pairs that occur twice.
        context_length: Longest caption in tokens, BOS and EOS included.

    Returns:
        A tokenizer that lower-cases and pads with EOS, as CLIP's does.
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
        # Named beforehand: else a hash map orders them, and equal captions give another vocabulary.
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
    return CLIPTokenizer(vocab=vocab, merges=kept, model_max_length=context_length)


def _merges(backend: Tokenizer) -> list[tuple[str, str]]:
    """Merges in the order they were learned; the library tells them in its JSON alone."""
    return [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]


def unknown_words(text: str, tokenizer: CLIPTokenizer) -> list[str]:
    """Words of a text that the vocabulary holds only in pieces, in order, each once."""
    backend = tokenizer.backend_tokenizer
    normalized = backend.normalizer.normalize_str(text)
    words = backend.pre_tokenizer.pre_tokenize_str(normalized)
    return list(
        dict.fromkeys(
            normalized[a:b] for word, (a, b) in words if backend.token_to_id(word + END_OF_WORD) is None
        )
    )


def cut_off(text: str, tokenizer: CLIPTokenizer) -> str:
    """What lies behind the last position that a text encoder reads; empty where all is read."""
    places = tokenizer(text, truncation=False, verbose=False, return_offsets_mapping=True).offset_mapping
    unread = places[tokenizer.model_max_length - 1 : -1]
    # In the text's own letters: a vocabulary that was learned here would be decoded with its marks in it.
    return text[unread[0][0] :].strip() if unread else ""


def prompt_notes(prompt: str, tokenizer: CLIPTokenizer) -> list[str]:
    """Say what a base cannot read of a prompt: what lies behind its last position, and unknown words.

    Args:
        prompt: What is to be drawn.
        tokenizer: The base's.

    Returns:
        A sentence for each; empty where all is read.
    """
    if not prompt.strip():
        return ["the prompt is empty: drawn without one"]
    notes = []
    unread = cut_off(prompt, tokenizer)
    if unread:
        num_tokens = len(tokenizer(prompt, truncation=False, verbose=False).input_ids)
        notes.append(f"{num_tokens} tokens, {tokenizer.model_max_length} are read; cut off: {unread!r}")
    unknown = unknown_words(prompt, tokenizer)
    if unknown:
        notes.append(f"not in the vocabulary, so read in pieces: {', '.join(unknown)}")
    return notes
