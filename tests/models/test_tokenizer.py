"""A tokenizer of one's own, by CLIP's rules."""

from transformers import CLIPTokenizer

import tiny
from clipgraft.models.tokenizer import train_tokenizer, unknown_words


def test_equal_captions_give_an_equal_vocabulary():
    first, second = (train_tokenizer(tiny.CAPTIONS * 2, vocab_size=700) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()


def test_eos_has_the_highest_id_and_pads():
    tokenizer = tiny.build_tokenizer()
    assert tokenizer.eos_token_id == len(tokenizer) - 1 == tokenizer.pad_token_id
    assert tokenizer.bos_token_id == tokenizer.eos_token_id - 1


def test_known_words_are_one_token_and_any_text_can_be_encoded():
    tokenizer = tiny.build_tokenizer()
    ids = tokenizer("A DOG runs").input_ids
    assert tokenizer.convert_ids_to_tokens(ids)[1:-1] == ["a</w>", "dog</w>", "runs</w>"]
    assert len(tokenizer("zebra 🐕 Größe").input_ids) > 5


def test_unknown_words_are_named_in_order_and_once():
    assert unknown_words("A zebra runs , Zebra on the xylophone", tiny.build_tokenizer()) == [
        "zebra",
        "xylophone",
    ]


def test_vocabulary_is_no_larger_than_asked_for():
    assert len(train_tokenizer(tiny.CAPTIONS * 5, vocab_size=530)) <= 530


def test_saved_tokenizer_comes_back_the_same(tmp_path):
    tokenizer = tiny.build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    text = "A black cat and a zebra"
    assert again(text).input_ids == tokenizer(text).input_ids
    assert again.model_max_length == 77
