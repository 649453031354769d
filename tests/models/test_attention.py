"""Attention in float32 where a CPU computes in bfloat16."""

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPModel

from clipgraft.models.attention import ATTENTION, attend
from clipgraft.models.clip import load_clip

SHAPE = (2, 3, 7, 16)


def inputs(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator).to(dtype) for _ in range(3)]


def test_attention_is_the_formula():
    query, key, value = inputs(torch.float32)
    mask = torch.ones(7, 7, dtype=torch.bool).tril()
    scores = (query.double() @ key.double().mT / 4).masked_fill(~mask, -torch.inf)
    expected = scores.softmax(-1) @ value.double()
    torch.testing.assert_close(attend(query, key, value, mask).double(), expected, atol=1e-6, rtol=0)


def test_bfloat16_is_rounded_once_at_the_end():
    query, key, value = inputs(torch.bfloat16)
    exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attend(query, key, value), exact.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_clip_gives_what_eager_attention_gives(clip_dir, dtype):
    clip = load_clip(clip_dir)
    assert clip.model.config.text_config._attn_implementation == ATTENTION
    eager = CLIPModel.from_pretrained(clip_dir, attn_implementation="eager").eval()
    batch = clip.tokenizer(["a dog", "two dogs on a beach"], padding="max_length", return_tensors="pt")
    size = clip.model.config.vision_config.image_size
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = clip.model.to(dtype)(batch.input_ids, pixels.to(dtype), batch.attention_mask)
        theirs = eager(batch.input_ids, pixels, batch.attention_mask)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    for name in ("text_embeds", "image_embeds"):
        torch.testing.assert_close(ours[name].float(), theirs[name], atol=tolerance, rtol=0)


def test_its_name_is_not_written_with_the_weights(clip_dir, tmp_path):
    load_clip(clip_dir).model.save_pretrained(tmp_path)
    assert ATTENTION not in (tmp_path / "config.json").read_text(encoding="utf-8")
