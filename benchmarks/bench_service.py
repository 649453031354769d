"""What the studio costs over drawing in process, and what it gains where several clients ask at once.

    python benchmarks/bench_service.py [--rounds 5] [--images 8] [--soak-seconds 1800]

On flatland, over loopback, against a studio in a process of its own with as many threads as this one. One
client: in-process drawing and calls over HTTP take turns, and the median ratio is printed. Eight clients: the
same images one after another and all at once, and what batches of eight gain in process, the most that can
be had. Listeners: steps a second while 0 and while 64 clients listen to a job's events. Full queue: time of a
429. Soak: clients ask for twice what is drawn and follow their jobs to the end; every accepted job must end,
none may be lost or drawn twice. Memory is read at the start, after a tenth of the time (a first use compiles
for each size of a batch) and at the end. Writes benchmarks/results/service.json.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import torch

import clipgraft
from clipgraft.device import describe_environment
from clipgraft.files import write_json

RESULT = Path(__file__).parent / "results" / "service.json"
CLIENTS = 8
LISTENERS = 64
STEPS = 10
PROMPT = "A dog running on the beach at sunset"


class Studio:
    """A studio process on a free port of loopback, without runs."""

    def __init__(self, folder: Path) -> None:
        command = [
            sys.executable,
            "-m",
            "clipgraft",
            "studio",
            folder / "runs",
            "--out",
            folder / "home",
            "--port",
            "0",
        ]
        environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        self.process = subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.PIPE, text=True, env=environment
        )
        self.address = re.search(r"http://\S+/", self.process.stdout.readline())[0]

    def ask(self, path: str, body: dict | None = None) -> dict:
        """Send JSON, or GET without any."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as answer:
            text = answer.read().decode()
        return json.loads(text)

    def draw(self, seed: int, user: str = "") -> float:
        """Draw one image as OpenAI's clients do; return the seconds."""
        begun = time.perf_counter()
        body = {"prompt": PROMPT, "seed": seed, "steps": STEPS, "response_format": "url", "user": user}
        self.ask("v1/images/generations", body)
        return time.perf_counter() - begun

    def resident_bytes(self) -> int:
        """Bytes of its process in memory."""
        return psutil.Process(self.process.pid).memory_info().rss

    def num_images(self) -> int:
        """Images that it has drawn and keeps."""
        count, before = 0, ""
        while rows := self.ask(f"v1/images?limit=200{before}")["images"]:
            count, before = count + len(rows), f"&before={rows[-1]['number']}"
        return count


def overhead(studio: Studio, rounds: int) -> dict:
    """Seconds of an image in process and over HTTP, in turns."""
    generator = clipgraft.load("flatland")
    seconds: dict[str, list[float]] = {"in_process": [], "service": []}

    def in_process(seed: int) -> float:
        begun = time.perf_counter()
        generator.generate(PROMPT, seed=seed, num_inference_steps=STEPS, guidance_scale=3.0)
        return time.perf_counter() - begun

    for draw in (in_process, studio.draw):
        draw(0)
    for seed in range(rounds):
        seconds["in_process"].append(in_process(seed))
        seconds["service"].append(studio.draw(seed))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "seconds": medians,
        "service_over_in_process": medians["service"] / medians["in_process"],
        "rounds": rounds,
    }


def eight_clients(studio: Studio, images: int, rounds: int) -> dict:
    """Images a second, one after another and by eight clients at once, in turns; latencies."""
    rates: dict[str, list[float]] = {
        "one_after_another": [],
        "at_once": [],
        "in_process_by_one": [],
        "in_process_by_eight": [],
    }
    latencies: list[float] = []
    generator = clipgraft.load("flatland")

    def in_process(batch_size: int) -> float:
        begun = time.perf_counter()
        generator.generate(
            [PROMPT] * images, num_inference_steps=STEPS, guidance_scale=3.0, batch_size=batch_size
        )
        return images / (time.perf_counter() - begun)

    in_process(1), in_process(CLIENTS)
    for _ in range(rounds):
        begun = time.perf_counter()
        for seed in range(images):
            studio.draw(seed)
        rates["one_after_another"].append(images / (time.perf_counter() - begun))
        begun = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            latencies += pool.map(lambda seed: studio.draw(seed, f"client {seed % CLIENTS}"), range(images))
        rates["at_once"].append(images / (time.perf_counter() - begun))
        rates["in_process_by_one"].append(in_process(1))
        rates["in_process_by_eight"].append(in_process(CLIENTS))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    latencies.sort()
    at = {
        f"p{share}": latencies[min(len(latencies) - 1, len(latencies) * share // 100)]
        for share in (50, 95, 99)
    }
    return {
        "images_per_second": medians,
        "at_once_over_one_after_another": medians["at_once"] / medians["one_after_another"],
        "in_process_by_eight_over_by_one": medians["in_process_by_eight"] / medians["in_process_by_one"],
        "latency_seconds_of_eight_clients": at,
        "images": images,
        "rounds": rounds,
    }


LISTENER = """
import selectors, socket, sys
port, path, number = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
waiting = selectors.DefaultSelector()
for _ in range(number):
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(f"GET /{path} HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\n\\r\\n".encode())
    waiting.register(connection, selectors.EVENT_READ)
print("listening", flush=True)
while True:
    for key, _ in waiting.select():
        if not key.fileobj.recv(1 << 20):
            waiting.unregister(key.fileobj)
"""
"""Reads events and throws them away, in a process of its own."""


def listeners(studio: Studio, rounds: int, seconds: float = 4.0) -> dict:
    """Steps a second of a job of 64 images while 0, and while 64 clients listen to its events, in turns.

    And the studio's processor time a step, which neighbours on the machine disturb less.
    """
    rates: dict[int, list[float]] = {0: [], LISTENERS: []}
    costs: dict[int, list[float]] = {0: [], LISTENERS: []}
    own = psutil.Process(studio.process.pid)
    port = int(studio.address.rsplit(":", 1)[1].strip("/"))
    for _ in range(rounds):
        for number, found in rates.items():
            body = {"prompt": PROMPT, "steps": 150, "num_images": 64, "width": 128, "height": 128}
            job = studio.ask("v1/jobs", body)["id"]
            command = [sys.executable, "-c", LISTENER, str(port), f"v1/jobs/{job}/events", str(number)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                process.stdout.readline()
                while not (begun := studio.ask(f"v1/jobs/{job}")["step"]):
                    time.sleep(0.05)
                start, used = time.perf_counter(), sum(own.cpu_times()[:2])
                time.sleep(seconds)
                steps = studio.ask(f"v1/jobs/{job}")["step"] - begun
                found.append(steps / (time.perf_counter() - start))
                costs[number].append((sum(own.cpu_times()[:2]) - used) / steps)
                process.terminate()
            studio.ask(f"v1/jobs/{job}/cancel", {})
    medians = {number: statistics.median(found) for number, found in rates.items()}
    seconds_a_step = {number: statistics.median(found) for number, found in costs.items()}
    return {
        "steps_per_second_by_listeners": medians,
        "steps_with_64_over_with_none": medians[LISTENERS] / medians[0],
        "processor_seconds_per_step_by_listeners": seconds_a_step,
        "processor_with_64_over_with_none": seconds_a_step[LISTENERS] / seconds_a_step[0],
        "rounds": rounds,
    }


def check_is_busy(error: urllib.error.HTTPError) -> None:
    """Any other refusal than for want of room ends the measurement."""
    if error.code != 429:
        raise error


def full_queue(studio: Studio) -> dict:
    """Milliseconds until a studio whose queue is full says so, while it draws."""
    jobs = []
    for client in range(40):
        try:
            body = {"prompt": PROMPT, "steps": 50, "num_images": 64, "client": f"filler {client}"}
            jobs.append(studio.ask("v1/jobs", body)["id"])
        except urllib.error.HTTPError as error:
            check_is_busy(error)
            break
    seconds = []
    for _ in range(20):
        begun = time.perf_counter()
        try:
            studio.ask("v1/jobs", {"prompt": PROMPT, "num_images": 64})
        except urllib.error.HTTPError as error:
            check_is_busy(error)
        seconds.append(time.perf_counter() - begun)
    for job in jobs:
        studio.ask(f"v1/jobs/{job}/cancel", {})
    return {"milliseconds_to_429": {"median": 1000 * statistics.median(seconds), "max": 1000 * max(seconds)}}


def soak_client(studio: Studio, number: int, end: float, pause: float) -> Counter[str]:
    """Ask for an image after each pause, following each job while it is known; count how they ended."""
    counts: Counter[str] = Counter()
    waiting: deque[str] = deque()
    seed = number
    while time.monotonic() < end or waiting:
        if time.monotonic() < end:
            body = {"prompt": PROMPT, "steps": STEPS, "seed": seed, "client": f"client {number}"}
            try:
                waiting.append(studio.ask("v1/jobs", body)["id"])
                counts["accepted"] += 1
            except urllib.error.HTTPError as error:
                check_is_busy(error)
                counts["refused"] += 1
            seed += CLIENTS
        while waiting and (state := studio.ask(f"v1/jobs/{waiting[0]}")["state"]) not in (
            "queued",
            "running",
        ):
            counts[state] += 1
            waiting.popleft()
        time.sleep(pause)
    return counts


def soak(studio: Studio, seconds: float, rate: float) -> dict:
    """Ask for twice what can be drawn; every accepted job must end, each drawn once."""
    drawn_before, memory = studio.num_images(), [studio.resident_bytes()]
    end = time.monotonic() + seconds
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [
            pool.submit(soak_client, studio, number, end, CLIENTS / (2 * rate)) for number in range(CLIENTS)
        ]
        time.sleep(seconds / 10)
        memory.append(studio.resident_bytes())
        counts = sum((client.result() for client in clients), Counter())
    memory.append(studio.resident_bytes())
    accepted, refused = counts.pop("accepted"), counts.pop("refused", 0)
    assert counts == {"done": accepted}, counts
    assert studio.num_images() - drawn_before == accepted
    return {
        "seconds": seconds,
        "accepted": accepted,
        "refused_with_429": refused,
        "states": counts,
        "memory_growth_in_first_tenth": memory[1] / memory[0] - 1,
        "memory_growth_after_it": memory[2] / memory[1] - 1,
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=8, help="of a round with eight clients")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--soak-seconds", type=float, default=1800.0, help="0 = no soak; the last one is kept"
    )
    options = parser.parse_args()
    environment = describe_environment(torch.device("cpu"))
    environment |= {"command": f"python benchmarks/bench_service.py --soak-seconds {options.soak_seconds:g}"}
    before = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    result: dict = {"environment": environment, "steps": STEPS}
    if not options.soak_seconds and "soak" in before:
        result["soak"] = before["soak"]
    with tempfile.TemporaryDirectory() as folder:
        studio = Studio(Path(folder))
        parts = {
            "one_client": lambda: overhead(studio, options.rounds),
            "eight_clients": lambda: eight_clients(studio, options.images, options.rounds),
            "listeners": lambda: listeners(studio, options.rounds),
            "full_queue": lambda: full_queue(studio),
            "soak": lambda: soak(
                studio, options.soak_seconds, result["eight_clients"]["images_per_second"]["at_once"]
            ),
        }
        if not options.soak_seconds:
            del parts["soak"]
        try:
            for name, measure in parts.items():
                result[name] = measure() | {"num_threads": torch.get_num_threads()}
                print(name, json.dumps(result[name], indent=2), flush=True)
                write_json(RESULT, result)
        finally:
            studio.process.terminate()
            studio.process.wait(timeout=120)


if __name__ == "__main__":
    main()
