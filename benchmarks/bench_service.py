"""What the studio costs over drawing in process, and what it gains where several clients ask at once.

    python benchmarks/bench_service.py [--pictures 8] [--soak-seconds 60]

On flatland, over loopback, against a studio in a process of its own with as many threads as this one. One
client: in-process drawing and calls over HTTP take turns, and the median ratio is printed. Eight clients: the
same pictures one after another and all at once. Full queue: time of a 429. Soak: clients ask for twice what
is drawn; every accepted job must end, none may be lost or come twice, and memory is read at both ends. Writes
benchmarks/results/service.json.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

import clipgraft
from clipgraft.runtime import describe_environment, write_json

RESULT = Path(__file__).parent / "results" / "service.json"
CLIENTS = 8
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

    def ask(self, path: str, body: dict | None = None) -> dict | str:
        """Send JSON, or GET without any."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as answer:
            text = answer.read().decode()
        return text if path == "metrics" else json.loads(text)

    def draw(self, seed: int, user: str = "") -> float:
        """Draw one picture as OpenAI's clients do; return the seconds."""
        begun = time.perf_counter()
        body = {"prompt": PROMPT, "seed": seed, "steps": STEPS, "response_format": "url", "user": user}
        self.ask("v1/images/generations", body)
        return time.perf_counter() - begun

    def resident_bytes(self) -> float:
        """Memory of the process, by its own figures."""
        return float(re.search(r"^clipgraft_resident_bytes (\S+)", self.ask("metrics"), re.MULTILINE)[1])


def overhead(studio: Studio, rounds: int) -> dict:
    """Seconds of a picture in process and over HTTP, in turns."""
    generator = clipgraft.load("flatland")
    seconds: dict[str, list[float]] = {"in_process": [], "service": []}

    def in_process(seed: int) -> float:
        begun = time.perf_counter()
        generator.generate(PROMPT, seed=seed, steps=STEPS, guidance_scale=3.0)
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


def eight_clients(studio: Studio, pictures: int, rounds: int) -> dict:
    """Pictures a second, one after another and by eight clients at once, in turns; latencies."""
    rates: dict[str, list[float]] = {"one_after_another": [], "at_once": []}
    latencies: list[float] = []
    for _ in range(rounds):
        begun = time.perf_counter()
        for seed in range(pictures):
            studio.draw(seed)
        rates["one_after_another"].append(pictures / (time.perf_counter() - begun))
        begun = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            latencies += pool.map(lambda seed: studio.draw(seed, f"client {seed % CLIENTS}"), range(pictures))
        rates["at_once"].append(pictures / (time.perf_counter() - begun))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    latencies.sort()
    at = {
        f"p{share}": latencies[min(len(latencies) - 1, len(latencies) * share // 100)]
        for share in (50, 95, 99)
    }
    return {
        "pictures_per_second": medians,
        "at_once_over_one_after_another": medians["at_once"] / medians["one_after_another"],
        "latency_seconds_of_eight_clients": at,
        "pictures": pictures,
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


def soak(studio: Studio, seconds: float, rate: float) -> dict:
    """Ask for twice what can be drawn; every accepted job must end, each once."""
    accepted, refused, lock = [], [0], threading.Lock()
    before = studio.resident_bytes()
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        seed = number
        while time.monotonic() < end:
            try:
                body = {"prompt": PROMPT, "steps": STEPS, "seed": seed, "client": f"client {number}"}
                job = studio.ask("v1/jobs", body)["id"]
                with lock:
                    accepted.append(job)
            except urllib.error.HTTPError as error:
                check_is_busy(error)
                refused[0] += 1
            seed += CLIENTS
            time.sleep(CLIENTS / (2 * rate))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    states: dict[str, int] = {}
    for job in accepted:
        while (state := studio.ask(f"v1/jobs/{job}")["state"]) in ("queued", "running"):
            time.sleep(0.2)
        states[state] = states.get(state, 0) + 1
    after = studio.resident_bytes()
    assert len(set(accepted)) == len(accepted)
    assert states == {"done": len(accepted)}, states
    return {
        "seconds": seconds,
        "accepted": len(accepted),
        "refused_with_429": refused[0],
        "states": states,
        "memory_growth": after / before - 1,
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=16, help="of a round with eight clients")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--soak-seconds", type=float, default=60.0, help="1800 for the half hour")
    options = parser.parse_args()
    result: dict = {"environment": describe_environment(torch.device("cpu")), "steps": STEPS}
    with tempfile.TemporaryDirectory() as folder:
        studio = Studio(Path(folder))
        try:
            result["one_client"] = overhead(studio, options.rounds)
            print(json.dumps(result["one_client"], indent=2))
            result["eight_clients"] = eight_clients(studio, options.pictures, options.rounds)
            print(json.dumps(result["eight_clients"], indent=2))
            result["full_queue"] = full_queue(studio)
            print(json.dumps(result["full_queue"], indent=2))
            if options.soak_seconds:
                rate = result["eight_clients"]["pictures_per_second"]["at_once"]
                result["soak"] = soak(studio, options.soak_seconds, rate)
                print(json.dumps(result["soak"], indent=2))
        finally:
            studio.process.terminate()
            studio.process.wait(timeout=120)
    write_json(RESULT, result)
    print(RESULT.name)


if __name__ == "__main__":
    main()
