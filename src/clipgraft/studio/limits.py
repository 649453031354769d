"""What the studio takes at most, so that no client can use up the machine."""

from clipgraft.settings import Count, Every, Positive, Section


class Limits(Section):
    """Bounds of requests, queue, history and memory."""

    max_waiting_pictures: Count = 256
    """Of all clients together; more are answered with 429."""
    max_jobs_per_client: Count = 16
    """Waiting or at work."""
    max_pictures_per_job: Count = 64
    max_steps: Count = 150
    max_side: Count = 1024
    """Pixels of a picture's height and width."""
    max_pixel_steps: Count = 64 * 512 * 512 * 50
    """Pictures times height times width times steps of a job: 64 pictures of 512 x 512 in 50 steps."""
    max_history: Count = 10_000
    """Pictures kept; the oldest go first."""
    max_body_bytes: Count = 12_000_000
    body_seconds: Positive = 30.0
    """In which a request has to arrive whole."""
    max_upload_pixels: Count = 16_000_000
    """Of one picture."""
    max_request_pixels: Count = 64_000_000
    """Of all pictures of a request together."""
    max_prompt_characters: Count = 4000
    """Prompt and negative prompt together."""
    max_texts: Count = 256
    """Texts and images of one request for embeddings."""
    max_search_images: Count = 1000
    """The first n test images of a run's data, among which captions are searched."""
    batch_size: Count = 8
    """Pictures drawn at once, at most."""
    memory_bytes: Every = 0
    """Of loaded weights; 0 = half of the machine's memory."""
