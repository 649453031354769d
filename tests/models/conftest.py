"""Tiny models on disk, written once a session; tests that change a file take a copy."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from clipgraft.models.base import FrozenBase
from clipgraft.models.bridge import Bridge
from clipgraft.models.clip import ClipParts, load_clip
from clipgraft.models.graft import GraftedTextEncoder
from tiny import TEACHER_WIDTH, TEXT_WIDTH, write_base, write_clip


@pytest.fixture(scope="session")
def clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    """Copy a folder, so that a test may damage it."""
    return lambda folder: Path(shutil.copytree(folder, tmp_path / folder.name))


@pytest.fixture
def clip(clip_dir: Path) -> ClipParts:
    return load_clip(clip_dir)


@pytest.fixture
def base(base_dir: Path) -> FrozenBase:
    return FrozenBase.load(str(base_dir))


@pytest.fixture
def encoder(clip: ClipParts, base: FrozenBase) -> GraftedTextEncoder:
    """A graft whose bridge, residual included, is random."""
    torch.manual_seed(2)
    bridge = Bridge(TEXT_WIDTH, TEACHER_WIDTH, hidden_size=20)
    torch.nn.init.normal_(bridge.residual[-1].weight)
    return GraftedTextEncoder.graft(
        clip.model.text_model, bridge, base.empty_prompt_embeds(), clip.tokenizer.eos_token_id
    )
