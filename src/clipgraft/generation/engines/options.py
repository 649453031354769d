"""How a base is run, and what of the work is left out.

Class A is the same picture to the bit, B up to rounding, C another picture.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from clipgraft.errors import UserError
from clipgraft.files import file_sha256


@dataclass(frozen=True)
class SpeedOptions:
    """Settings of engine and shortcuts.

    Raises:
        ValueError: If a value is not allowed; says what is.
    """

    engine: str = "auto"
    """auto, torch or openvino. Class A/B."""
    compile: bool = False
    """Compile torch's networks at their first run; pays after many pictures. Class B."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Shares of the steps that are run between which there is guidance. Class C where not 0 and 1."""
    feature_cache: int = 1
    """Steps from one whole run of the U-Net to the next. Class C above 1."""
    lora: str = ""
    """File or folder of a LoRA for the U-Net, e.g. one for few steps. Class C."""

    def __post_init__(self) -> None:
        start, stop = self.guidance_interval
        if not 0 <= start < stop <= 1:
            raise UserError(
                f"guidance_interval must be two rising shares of the steps, 0 to 1; got {start:g} {stop:g}"
            )
        if self.feature_cache < 1:
            raise UserError(f"feature_cache must be 1 (none) or more; got {self.feature_cache}")

    @property
    def is_guided_throughout(self) -> bool:
        """Whether there is guidance in all steps."""
        return tuple(self.guidance_interval) == (0.0, 1.0)

    def shortcuts(self) -> list[str]:
        """Name what changes the picture; each is of class C."""
        start, stop = self.guidance_interval
        named = {
            f"guidance from {start:.0%} to {stop:.0%} of the steps alone": not self.is_guided_throughout,
            f"the whole U-Net once in {self.feature_cache} steps": self.feature_cache > 1,
            f"LoRA {Path(self.lora).name}": bool(self.lora),
        }
        return [name for name, is_used in named.items() if is_used]

    def as_record(self, engine: str, dtype: torch.dtype) -> dict[str, Any]:
        """What of it decides a picture's bits, without a path.

        Args:
            engine: Name of the engine that was chosen.
            dtype: Its own.
        """
        record = asdict(self) | {"engine": engine, "dtype": str(dtype).removeprefix("torch.")}
        record["guidance_interval"] = list(self.guidance_interval)
        file = Path(record.pop("lora"))
        if self.lora:
            record["lora_sha256"] = file_sha256(next(file.glob("*.safetensors")) if file.is_dir() else file)
        return record


DEFAULT_SPEED = SpeedOptions()
