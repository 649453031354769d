"""The graft: a text encoder in place of a base's own.

It is CLIP's text tower and a bridge, or a copy of the base's own text encoder, distilled from those. As a
transformers model it works in any diffusers pipeline of that base, saving and loading included.
B batch, L tokens, D CLIP's width, W the base's width.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from pydantic import PrivateAttr
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from clipgraft.errors import CheckpointError, MissingFileError, UserError
from clipgraft.models.attention import ATTENTION
from clipgraft.models.base import COMPONENTS, FrozenBase, check_vocabularies
from clipgraft.models.bridge import Bridge, token_classes
from clipgraft.models.clip import check_vocabulary, text_hidden_states
from clipgraft.models.configs import BaseRecord, Checked, GraftConfig, TextConfig, read_config
from clipgraft.models.lineage import FILE_NAME as LINEAGE
from clipgraft.models.lineage import NO_LINEAGE, Lineage, read_lineage
from clipgraft.models.loading import (
    TRANSFORMERS_STEM,
    load_strictly,
    refuse_adapters,
    refuse_links_out,
    refuse_other_weights,
    weight_paths,
)
from clipgraft.models.tokenizer import load_tokenizer
from clipgraft.models.weights import FULL, HALF, verify_folder, verify_model, write_folder_atomically
from clipgraft.runs.folder_kinds import wrong_kind
from clipgraft.runs.run import GRAFT_NAMES, GRAFTS, StageResult

BASE_RECORD = "base.json"
ALL_COMPONENTS = (*COMPONENTS, "safety_checker")
GRAFTED_ONTO = tuple(name for name in ALL_COMPONENTS if name != "text_encoder")
"""Components that a graft leaves as they are."""


class GraftedTextConfig(PreTrainedConfig):
    """Shape of a `GraftedTextEncoder`; for `bridge_*` see `Bridge`.

    Args:
        text_config: Dict of the text tower's `CLIPTextConfig`.
        hidden_size: W, the U-Net's `cross_attention_dim`.
        eos_token_id: The tokenizer's.
    """

    model_type = "clipgraft_text_encoder"
    use_attention_mask = False
    """Stable Diffusion was trained on all 77 positions, padding included."""

    def __init__(
        self,
        text_config: dict[str, Any] | None = None,
        hidden_size: int = 768,
        bridge_hidden_size: int = 0,
        bridge_num_maps: int = 1,
        bridge_num_positions: int = 1,
        bridge_num_attention_blocks: int = 0,
        eos_token_id: int = 49407,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.text_config = text_config or CLIPTextConfig().to_dict()
        self.hidden_size = hidden_size
        self.bridge_hidden_size = bridge_hidden_size
        self.bridge_num_maps = bridge_num_maps
        self.bridge_num_positions = bridge_num_positions
        self.bridge_num_attention_blocks = bridge_num_attention_blocks
        self.eos_token_id = eos_token_id


class GraftedTextEncoder(PreTrainedModel):
    """CLIP's text tower and bridge, with the teacher's BOS and empty prompt.

    The BOS row is constant, as the tower is causal. Guidance would amplify errors of the empty prompt's
    embeds. Weights are random until loaded or set.
    """

    # diffusers writes this module's name into model_index.json and imports the class from it.
    __module__ = "clipgraft"
    config_class = GraftedTextConfig
    main_input_name = "input_ids"
    _no_split_modules = ("CLIPTextEmbeddings", "CLIPEncoderLayer")
    empty_states: Tensor
    """The teacher's embeds of the empty prompt, (77, W); the name is the file format's."""

    def __init__(self, config: GraftedTextConfig):
        super().__init__(config)
        text_config = CLIPTextConfig(**config.text_config)
        self.text_model = CLIPTextModel(text_config)
        self.bridge = Bridge(
            text_config.hidden_size,
            config.hidden_size,
            config.bridge_hidden_size,
            num_maps=config.bridge_num_maps,
            num_positions=config.bridge_num_positions,
            num_attention_blocks=config.bridge_num_attention_blocks,
        )
        self.register_buffer(
            "empty_states", torch.zeros(text_config.max_position_embeddings, config.hidden_size)
        )
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Do nothing: the towers initialise themselves."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        return_dict: bool | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPooling | tuple[Tensor, Tensor]:
        """Encode prompts.

        Args:
            input_ids: (B, L) int64, each row BOS, words, EOS, EOS as padding.
            attention_mask: Unused: the base was trained without one.
            return_dict: False for a tuple.
            output_hidden_states: Unsupported: earlier layers (`clip_skip`) have no bridge.

        Returns:
            `last_hidden_state` (B, L, W), and `pooler_output` (B, W), its row at the first EOS.

        Raises:
            UserError: If `output_hidden_states` is true.
        """
        if output_hidden_states:
            raise UserError("a graft has no hidden states of earlier layers; leave clip_skip out")
        hidden_states = text_hidden_states(self.text_model, input_ids)  # (B, L, D)
        embeds = self.bridge(hidden_states, token_classes(input_ids, self.config.eos_token_id))  # (B, L, W)
        empty = self.empty_states[: input_ids.shape[1]].to(embeds)  # (L, W)
        is_eos = input_ids == self.config.eos_token_id
        is_empty = is_eos[:, 1:].all(1)[:, None, None]
        with_bos = torch.cat([empty[:1].expand(len(embeds), 1, -1), embeds[:, 1:]], 1)
        embeds = torch.where(is_empty, empty, with_bos)
        pooled = embeds[torch.arange(len(embeds), device=embeds.device), is_eos.int().argmax(1)]
        if return_dict is False:
            return embeds, pooled
        return BaseModelOutputWithPooling(last_hidden_state=embeds, pooler_output=pooled)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *model_args: Any,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load like any transformers model, but strictly and only from safetensors.

        Raises:
            CheckpointError: If weights are missing or unknown, an adapter lies beside them, or an index names
                other files than the folder's safetensors.
        """
        kwargs["use_safetensors"] = True
        if pretrained_model_name_or_path and Path(pretrained_model_name_or_path).is_dir():
            refuse_adapters(Path(pretrained_model_name_or_path))
            weight_paths(Path(pretrained_model_name_or_path), TRANSFORMERS_STEM, (FULL, HALF))
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
        )
        refuse_other_weights(
            pretrained_model_name_or_path, missing=info["missing_keys"], unexpected=info["unexpected_keys"]
        )
        return (model, info) if output_loading_info else model

    @classmethod
    def graft(
        cls, text_model: CLIPTextModel, bridge: Bridge, empty_prompt_embeds: Tensor, eos_token_id: int
    ) -> "GraftedTextEncoder":
        """Assemble text tower, fitted bridge and the teacher's empty prompt.

        Args:
            text_model: Text tower of width D.
            bridge: From D to W.
            empty_prompt_embeds: The teacher's, (77, W).
            eos_token_id: The tokenizer's.
        """
        config = GraftedTextConfig(
            text_config=text_model.config.to_dict(),
            hidden_size=bridge.config["output_size"],
            bridge_hidden_size=bridge.config["hidden_size"],
            bridge_num_maps=bridge.config["num_maps"],
            bridge_num_positions=bridge.config["num_positions"],
            bridge_num_attention_blocks=bridge.config["num_attention_blocks"],
            eos_token_id=eos_token_id,
        )
        encoder = cls(config)
        encoder.text_model.load_state_dict(text_model.state_dict())
        encoder.bridge.load_state_dict(bridge.state_dict())
        encoder.empty_states.copy_(empty_prompt_embeds)
        return encoder.eval()


@dataclass
class Graft:
    """A text encoder for a base, with tokenizer, base record and lineage."""

    text_encoder: GraftedTextEncoder | CLIPTextModel
    """CLIP and bridge; or the base's own text encoder, distilled from such a graft."""
    tokenizer: CLIPTokenizer
    base: BaseRecord
    lineage: Lineage = NO_LINEAGE

    @property
    def is_distilled(self) -> bool:
        """Whether its text encoder is the base's own, distilled."""
        return isinstance(self.text_encoder, CLIPTextModel)

    @property
    def grafted(self) -> GraftedTextEncoder:
        """CLIP and bridge.

        Raises:
            UserError: If the text encoder is distilled.
        """
        if not isinstance(self.text_encoder, GraftedTextEncoder):
            raise UserError(
                "a distilled text encoder has neither CLIP nor bridge; name the graft that it was distilled "
                "from"
            )
        return self.text_encoder

    @property
    def bridge(self) -> Bridge:
        """The map from CLIP's hidden states to the base's prompt embeds."""
        return self.grafted.bridge

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Graft":
        """Load a graft, strictly.

        Raises:
            MissingFileError: If there is no such folder.
            CheckpointError: If it is not a graft, or a file or weight is missing, unknown or damaged.
        """
        folder = Path(folder).expanduser()
        verify_graft(folder)
        return load_verified_graft(folder)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write encoder, tokenizer, base record and lineage, atomically."""
        with write_folder_atomically(Path(folder).expanduser()) as temporary:
            self.text_encoder.save_pretrained(temporary)
            self.tokenizer.save_pretrained(temporary)
            for name, content in ((BASE_RECORD, self.base), (LINEAGE, self.lineage)):
                (temporary / name).write_text(content.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def load_base(
        self,
        name: str = "",
        *,
        components: Collection[str] = GRAFTED_ONTO,
        dtype: torch.dtype | None = torch.float32,
    ) -> FrozenBase:
        """Load the graft's base, by default without the base's own text encoder.

        Args:
            name: The base's present place; empty = as recorded.
            components: As for `FrozenBase.load`.
            dtype: Of the weights; None = as stored.

        Raises:
            CheckpointError: If it is another base.
        """
        base = FrozenBase.load(
            name or self.base.name,
            revision="" if name else self.base.revision,
            components=components,
            dtype=dtype,
            tokenizer=self.tokenizer,
        )
        base.check_record(self.base)
        check_vocabularies(self.tokenizer, base)
        return base

    def pipeline(self, base: FrozenBase | str | None = None) -> StableDiffusionPipeline:
        """Return a plain diffusers pipeline with the grafted text encoder.

        Args:
            base: The base or its place; None = as recorded.

        Raises:
            CheckpointError: If it is another base.
        """
        if not isinstance(base, FrozenBase):
            return self.load_base(base or "").pipeline(self.text_encoder)
        base.check_record(self.base)
        check_vocabularies(self.tokenizer, base)
        return base.pipeline(self.text_encoder)


class GraftResult(StageResult):
    """Figures of a stage that makes a graft."""

    _graft: Graft | None = PrivateAttr(None)

    @property
    def graft(self) -> Graft:
        """What the stage made (only of a new result, not one read from a file)."""
        assert self._graft is not None
        return self._graft


def verify_graft(folder: Path) -> BaseRecord:
    """Verify the files of a graft; return the record of its base.

    Raises:
        MissingFileError: If there is no such folder.
        CheckpointError: If it is not a graft, or a file is missing, unknown or damaged.
    """
    if not folder.exists():
        raise MissingFileError(f"graft folder not found: {folder}; `clipgraft bridge` writes one")
    record = folder / BASE_RECORD
    if not record.is_file():
        places = (f"{place}/{BASE_RECORD}" for place in (*GRAFT_NAMES, *reversed(GRAFTS.values())))
        advice = "the folder `graft` or `text_encoder` that `bridge`, `refine` or `distill` wrote"
        raise CheckpointError(wrong_kind(folder, "a graft", *places, advice=advice))
    refuse_links_out(folder, [folder])
    verify_model(folder)
    return BaseRecord(**read_config(record, BaseRecord))


def load_verified_graft(folder: Path) -> Graft:
    """Load a graft that `verify_graft` has read already."""
    tokenizer = load_tokenizer(folder)
    base = BaseRecord(**read_config(folder / BASE_RECORD, BaseRecord))
    return Graft(_load_encoder(folder, tokenizer), tokenizer, base, read_lineage(folder))


def read_base_record(folder: Path) -> BaseRecord | None:
    """Read a graft folder's record of its base, if it has one.

    Raises:
        CheckpointError: If the folder is damaged.
    """
    record = folder / BASE_RECORD
    if not record.is_file():
        return None
    verify_folder(folder)
    return BaseRecord(**read_config(record, BaseRecord))


def _load_encoder(folder: Path, tokenizer: CLIPTokenizer) -> GraftedTextEncoder | CLIPTextModel:
    path = folder / "config.json"
    if read_config(path, Checked).get("model_type") == CLIPTextConfig.model_type:
        distilled = load_strictly(CLIPTextModel, folder, TextConfig, attn_implementation=ATTENTION)
        check_vocabulary(distilled, tokenizer, folder)
        return distilled
    encoder = load_strictly(GraftedTextEncoder, folder, GraftConfig)
    check_vocabulary(encoder.text_model, tokenizer, folder)
    if encoder.config.eos_token_id != tokenizer.eos_token_id:
        raise CheckpointError(
            f"{path}: eos_token_id is {encoder.config.eos_token_id}, the tokenizer's is "
            f"{tokenizer.eos_token_id}; write the graft again"
        )
    return encoder
