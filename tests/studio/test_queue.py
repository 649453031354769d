"""The queue by itself: order, bounds, batches, and what a killed process leaves."""

from collections import Counter

import pytest

from clipgraft.generation.requests import ImageRequest
from clipgraft.studio.queue import BusyError, Queue
from helpers import image_request


def image(side: int = 64, model: str = "m", prompt: str = "a dog") -> tuple[str, ImageRequest]:
    return model, image_request(prompt, height=side, width=side, num_inference_steps=10)


@pytest.fixture
def queue(tmp_path):
    made = Queue(tmp_path / "queue.sqlite", max_waiting=20, max_jobs_per_client=4)
    yield made
    made.database.close()


def states(queue):
    rows = [row for job in queue.jobs(99) for row in queue.images_of(job.number)]
    return Counter(row.state for row in rows)


def clients_of(queue, rows):
    return [queue.job_by_number(row.job).client for row in rows]


def test_jobs_are_served_in_the_order_in_which_they_came(queue):
    queue.add("first", "generate", [image(64), image(32)])
    queue.add("second", "generate", [image(64)])
    assert [clients_of(queue, queue.take(1))[0] for _ in range(3)] == ["first", "first", "second"]


def test_a_batch_is_filled_from_the_jobs_behind(queue):
    queue.add("first", "generate", [image()])
    queue.add("other", "generate", [image(32)])
    queue.add("second", "generate", [image()])
    assert clients_of(queue, queue.take(4)) == ["first", "second"]


def test_images_before_a_job_are_counted(queue):
    first = queue.job(queue.add("a", "generate", [image(), image()]))
    second = queue.job(queue.add("b", "generate", [image()]))
    queue.take(1)
    assert (queue.count_before(first.number), queue.count_before(second.number)) == (0, 2)
    assert queue.count_before() == 3
    queue.end_job(first.number, "cancelled")
    assert queue.count_before(second.number) == 0


def test_batches_have_few_sizes(queue):
    queue.add("a", "generate", [image() for _ in range(15)])
    assert [len(queue.take(8)) for _ in range(5)] == [8, 4, 2, 1, 0]


def test_a_batch_holds_images_of_one_shape_and_one_model_alone(queue):
    queue.add("a", "generate", [image(64), image(32), image(64), image(64, model="n")])
    taken = queue.take(8)
    assert [(row.settings["width"], row.model) for row in taken] == [(64, "m")] * 2


def test_what_does_not_fit_is_refused_whole(queue):
    queue.add("a", "generate", [image() for _ in range(15)])
    with pytest.raises(BusyError, match="15 images are waiting and at most 20 may; 6 more do not fit"):
        queue.add("b", "generate", [image() for _ in range(6)])
    assert states(queue) == {"queued": 15}
    assert queue.add("b", "generate", [image() for _ in range(5)])


def test_one_client_cannot_hold_all_places(queue):
    for _ in range(4):
        queue.add("a", "generate", [image()])
    with pytest.raises(BusyError, match="4 of your jobs are waiting and at most 4 may"):
        queue.add("a", "generate", [image()])
    assert queue.add("b", "generate", [image()])


def test_names_of_one_address_share_its_places(queue):
    for name in range(4):
        queue.add(f"1.1.1.1 {name}", "generate", [image()])
    with pytest.raises(BusyError, match="4 of your jobs are waiting and at most 4 may"):
        queue.add("1.1.1.1 another", "generate", [image()])
    assert queue.add("2.2.2.2 ", "generate", [image()])


def test_a_cancelled_job_leaves_nothing_in_the_queue(queue):
    job = queue.job(queue.add("a", "generate", [image(), image()]))
    taken = queue.take(1)
    assert queue.end_job(job.number, "cancelled")
    assert not queue.end_job(job.number, "cancelled")
    assert queue.take(8) == []
    queue.finish_image(taken[0].number, "ok")
    assert {row.state for row in queue.images_of(job.number)} == {"cancelled"}


def test_after_a_kill_only_running_jobs_are_interrupted(tmp_path):
    path = tmp_path / "queue.sqlite"
    killed = Queue(path)
    cut_off = killed.add("a", "generate", [image(), image(), image()])
    finished, running = killed.take(2)
    killed.finish_image(finished.number, "ok")
    waiting = killed.add("a", "generate", [image()])
    calls = [killed.add("a", kind, [image()]) for kind in ("call", "stream")]
    # No close: the process is gone.
    again = Queue(path)
    assert set(again.recover(lambda image_id: False)) == {cut_off, *calls}
    job = again.job(cut_off)
    assert (job.state, job.error) == ("interrupted", "the studio was stopped while this job was open")
    assert [row.state for row in again.images_of(job.number)] == ["ok", "interrupted", "interrupted"]
    assert again.images_of(job.number)[1].id == running.id
    assert [row.job for row in again.take(8)] == [again.job(waiting).number]


def test_an_image_written_before_the_kill_counts_as_finished(tmp_path):
    path = tmp_path / "queue.sqlite"
    killed = Queue(path)
    job_id = killed.add("a", "generate", [image()])
    row = killed.take(1)[0]
    again = Queue(path)
    assert again.recover(lambda image_id: image_id == row.id) == []
    assert again.job(job_id).state == "done"
    assert [found.id for found in again.history()] == [row.id]


def test_history_is_found_by_words_in_any_order_and_case(queue):
    for prompt in ("A dog on the beach", "a Beach without it", "100% wool_sock", "100 wool socks"):
        queue.add(prompt, "generate", [image(prompt=prompt)])
        for row in queue.take(1):
            queue.finish_image(row.number, "ok", seconds=1.0)
    prompts = lambda search: [row.prompt for row in queue.history(search)]  # noqa: E731
    assert prompts("beach DOG") == ["A dog on the beach"]
    assert prompts("beach") == ["a Beach without it", "A dog on the beach"]
    assert prompts("100%") == ["100% wool_sock"]
    assert prompts("wool_") == ["100% wool_sock"]
    assert prompts("' OR 1=1 --") == []
    newest = queue.history(limit=1)[0]
    assert len(queue.history(before=newest.number)) == 3


def test_history_is_bounded_and_open_jobs_are_never_forgotten(queue):
    ids = []
    for index in range(6):
        queue.add("a", "generate", [image(prompt=str(index))])
        row = queue.take(1)[0]
        queue.finish_image(row.number, "ok")
        queue.end_job_if_finished(row.job)
        ids.append(row.id)
    queue.add("a", "generate", [image(prompt="waits")])
    assert queue.prune(4) == ids[:3]
    assert states(queue) == {"ok": 3, "queued": 1}
    assert queue.prune(0) == ids[3:]
    assert states(queue) == {"queued": 1}
