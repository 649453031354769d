"""Write a graft in forms that other tools load."""

from pathlib import Path

import torch
from rich.console import Console

from clipgraft.generation.pipeline import build_pipeline
from clipgraft.models.encoder import load_graft
from clipgraft.runtime import quiet_libraries
from clipgraft.stages.generate import load_base


def export(graft: Path, out_dir: Path, *, base: str = "") -> None:
    """Write graft and base as one folder that diffusers loads after `import clipgraft`.

    Raises:
        ValueError: If the folder holds something already.
    """
    if out_dir.exists() and any(out_dir.iterdir()):
        raise ValueError(f"{out_dir} already holds files; name an empty or new folder with --out")
    quiet_libraries()
    loaded = load_graft(graft)
    frozen = load_base([loaded], base, torch.float32, with_teacher=False)
    build_pipeline(frozen, loaded.text_encoder).save_pretrained(out_dir)
    Console().print(f"pipeline: {out_dir}", highlight=False, soft_wrap=True)
