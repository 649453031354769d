"""Recall against a naive sort and cases worked out by hand."""

import statistics

import pytest
import torch
from torch.nn.functional import normalize

from clipgraft.data.dataset import CaptionedImage, merge_duplicates
from clipgraft.evaluation.metrics import retrieval
from clipgraft.evaluation.metrics.retrieval import (
    image_to_text_ranks,
    paired_recall,
    retrieval_metrics,
    text_to_image_ranks,
)


def naive_metrics(text_embeds, image_embeds, image_index):
    """Sort every query's candidates by falling score, then by index, with Python's own sort."""
    scores = (text_embeds @ image_embeds.T).tolist()
    num_captions, num_images = len(text_embeds), len(image_embeds)
    expected = {"num_images": num_images, "num_captions": num_captions}
    for k in (1, 5, 10):
        found_images = sum(
            int(image_index[m]) in sorted(range(num_images), key=lambda n: (-scores[m][n], n))[:k]
            for m in range(num_captions)
        )
        found_texts = sum(
            any(
                int(image_index[m]) == n
                for m in sorted(range(num_captions), key=lambda m: (-scores[m][n], m))[:k]
            )
            for n in range(num_images)
        )
        expected[f"text_to_image_recall@{k}"] = found_images / num_captions
        expected[f"image_to_text_recall@{k}"] = found_texts / num_images
    return expected | naive_ranks(scores, image_index.tolist())


def naive_ranks(scores, image_index):
    """Median rank and mean average precision, from the same sorted lists."""
    num_captions, num_images = len(scores), len(scores[0])
    by_text = [sorted(range(num_images), key=lambda n: (-row[n], n)) for row in scores]
    by_image = [sorted(range(num_captions), key=lambda m: (-scores[m][n], m)) for n in range(num_images)]
    relevant = {
        "text_to_image": [[image == image_index[m] for image in order] for m, order in enumerate(by_text)],
        "image_to_text": [[image_index[m] == n for m in order] for n, order in enumerate(by_image)],
    }
    expected = {}
    for direction, lists in relevant.items():
        places = [[place for place, is_right in enumerate(found, 1) if is_right] for found in lists]
        expected[f"{direction}_median_rank"] = statistics.median(own[0] for own in places)
        precisions = [
            statistics.mean(number / place for number, place in enumerate(own, 1)) for own in places
        ]
        expected[f"{direction}_map"] = statistics.mean(precisions)
    return expected


def shuffled_index(num_images, num_captions, generator):
    """Every image at least once, the other captions anywhere."""
    extra = torch.randint(num_images, (num_captions - num_images,), generator=generator)
    index = torch.cat([torch.arange(num_images), extra])
    return index[torch.randperm(num_captions, generator=generator)]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_index_may_hold_integers_of_any_size(dtype):
    generator = torch.Generator().manual_seed(0)
    text_embeds, image_embeds = (torch.randn(rows, 8, generator=generator) for rows in (60, 20))
    index = shuffled_index(20, 60, generator)
    measured = retrieval_metrics(text_embeds, image_embeds, index.to(dtype))
    assert measured == pytest.approx(naive_metrics(text_embeds, image_embeds, index))


@pytest.mark.parametrize("seed", range(8))
def test_recall_equals_a_naive_sort_with_many_ties(seed):
    generator = torch.Generator().manual_seed(seed)
    # Small integers: products are exact, and nearly every score comes more than once.
    text_embeds = torch.randint(-1, 2, (61, 3), generator=generator).float()
    image_embeds = torch.randint(-1, 2, (23, 3), generator=generator).float()
    image_index = shuffled_index(23, 61, generator)
    measured = retrieval_metrics(text_embeds, image_embeds, image_index)
    assert measured == pytest.approx(naive_metrics(text_embeds, image_embeds, image_index))


def test_recall_equals_a_naive_sort_on_unit_vectors():
    generator = torch.Generator().manual_seed(0)
    image_embeds = normalize(torch.randn(40, 8, generator=generator), dim=-1)
    image_index = shuffled_index(40, 200, generator)
    text_embeds = normalize(image_embeds[image_index] + torch.randn(200, 8, generator=generator), dim=-1)
    measured = retrieval_metrics(text_embeds, image_embeds, image_index)
    assert measured == pytest.approx(naive_metrics(text_embeds, image_embeds, image_index))


def test_ranks_of_a_hand_worked_case():
    image_embeds = torch.eye(3)
    # Captions 0 and 1 are image 0's, 2 is image 1's, 3 is image 2's.
    text_embeds = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.8, 0.6], [0.0, 0.7, 0.7], [0.5, 0.5, 0.5]])
    image_index = torch.tensor([0, 0, 1, 2])
    # Caption 1 scores image 0 last; caption 2 ties images 1 and 2, lower first; caption 3 ties all three.
    assert text_to_image_ranks(text_embeds, image_embeds, image_index).tolist() == [0, 2, 0, 2]
    # Image 0: caption 0 leads (0.9). Image 1: caption 1 (0.8) before its own (0.7).
    # Image 2: captions 2 (0.7) and 1 (0.6) before its own (0.5).
    assert image_to_text_ranks(text_embeds, image_embeds, image_index).tolist() == [0, 1, 2]
    metrics = retrieval_metrics(text_embeds, image_embeds, image_index)
    assert metrics["text_to_image_recall@1"] == pytest.approx(2 / 4)
    assert metrics["image_to_text_recall@1"] == pytest.approx(1 / 3)
    assert (metrics["num_images"], metrics["num_captions"]) == (3, 4)


def test_any_of_an_images_captions_counts():
    image_embeds = torch.eye(2)
    text_embeds = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    # Image 0's first caption describes image 1; its second one is right.
    metrics = retrieval_metrics(text_embeds, image_embeds, torch.tensor([0, 0, 1]))
    assert metrics["text_to_image_recall@1"] == pytest.approx(2 / 3)
    # Image 1's caption ties with caption 0, which has the lower index and is wrong.
    assert metrics["image_to_text_recall@1"] == pytest.approx(1 / 2)


def test_equal_embeds_everywhere_rank_by_index():
    ranks = text_to_image_ranks(torch.ones(4, 2), torch.ones(4, 2), torch.tensor([3, 1, 0, 2]))
    assert ranks.tolist() == [3, 1, 0, 2]


def test_recall_at_k_is_one_where_the_gallery_holds_k_or_fewer():
    metrics = retrieval_metrics(-torch.eye(4), torch.eye(4), torch.arange(4))
    assert metrics["text_to_image_recall@1"] == 0.0
    assert metrics["text_to_image_recall@5"] == metrics["image_to_text_recall@10"] == 1.0


@pytest.mark.parametrize("scores_per_chunk", [1, 50, 201, 10_000])
def test_chunks_of_any_size_give_the_ranks_of_the_full_matrix(monkeypatch, scores_per_chunk):
    generator = torch.Generator().manual_seed(1)
    text_embeds = torch.randint(-2, 3, (50, 4), generator=generator).float()
    image_embeds = torch.randint(-2, 3, (17, 4), generator=generator).float()
    image_index = shuffled_index(17, 50, generator)
    whole = retrieval_metrics(text_embeds, image_embeds, image_index)
    monkeypatch.setattr(retrieval, "SCORES_PER_CHUNK", scores_per_chunk)
    assert retrieval_metrics(text_embeds, image_embeds, image_index) == whole


def test_half_precision_embeds_are_scored_in_float32():
    # In bfloat16 1 + 2^-8 rounds to 1: the two images would tie, and the wrong one has the lower index.
    image_embeds = torch.tensor([[1.0, 0.0], [1.0, 2.0**-8]], dtype=torch.bfloat16)
    text_embeds = torch.ones(3, 2, dtype=torch.bfloat16)
    metrics = retrieval_metrics(text_embeds, image_embeds, torch.tensor([1, 1, 0]))
    assert metrics["text_to_image_recall@1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("text_embeds", "image_embeds", "image_index", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), torch.arange(2), r"same P; got text_embeds \(2, 3\)"),
        (torch.ones(2), torch.ones(2, 1), torch.arange(2), r"must be \(M, P\) and \(N, P\)"),
        (torch.ones(3, 2), torch.ones(2, 2), torch.arange(2), r"each of 3 captions; got shape \(2,\)"),
        (torch.ones(2, 2), torch.ones(3, 2), torch.tensor([0, 2]), "image 1 has no caption"),
        (torch.ones(2, 2), torch.ones(2, 2), torch.tensor([0, 2]), "must lie in 0..1; got 2"),
        (torch.ones(2, 2), torch.ones(2, 2), torch.tensor([0, -1]), "must lie in 0..1; got -1"),
        (
            torch.ones(2, 2),
            torch.ones(2, 2),
            torch.tensor([0.0, 1.0]),
            "must hold integers; got torch.float32",
        ),
        (torch.ones(0, 2), torch.ones(0, 2), torch.arange(0), "there is no image to rank"),
        (
            torch.tensor([[1.0], [torch.nan]]),
            torch.ones(2, 1),
            torch.arange(2),
            "text_embeds row 1 is not finite",
        ),
        (
            torch.ones(2, 1),
            torch.tensor([[torch.inf], [1.0]]),
            torch.arange(2),
            "image_embeds row 0 is not fin",
        ),
    ],
)
def test_wrong_embeds_get_one_clear_line(text_embeds, image_embeds, image_index, message):
    with pytest.raises(ValueError, match=message) as error:
        retrieval_metrics(text_embeds, image_embeds, image_index)
    assert "\n" not in str(error.value)


def test_paired_recall_of_perfect_embeddings_is_a_fifth():
    image_embeds = torch.eye(8)
    image_index = torch.arange(8).repeat_interleave(5)
    text_embeds = image_embeds[image_index]
    true = retrieval_metrics(text_embeds, image_embeds, image_index)
    paired = paired_recall(text_embeds, image_embeds, image_index)
    assert true["text_to_image_recall@1"] == true["image_to_text_recall@1"] == 1.0
    assert paired == {
        "paired_text_to_image_recall@1": pytest.approx(0.2),
        "paired_image_to_text_recall@1": pytest.approx(0.2),
    }


def test_copies_of_a_photograph_are_one_right_answer(tmp_path):
    """By hand: perfect embeds, two photographs, each under two names; of copies a query finds either."""
    names = ("a", "b", "copy of a", "copy of b")
    images = [CaptionedImage(name, tmp_path / name, (f"{name} 1", f"{name} 2"), "test") for name in names]
    for image in images:
        image.file.write_text(image.image_id[-1])

    def recall(gallery):
        place = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([0.0, 1.0])}
        of_images = torch.stack([place[image.file.read_text()] for image in gallery])
        index = torch.arange(len(gallery)).repeat_interleave(torch.tensor([len(i.captions) for i in gallery]))
        found = retrieval_metrics(of_images[index], of_images, index)
        return [found[f"{direction}_recall@1"] for direction in ("text_to_image", "image_to_text")]

    assert recall(images) == [0.5, 0.5]
    assert recall(merge_duplicates(images)) == [1, 1]
