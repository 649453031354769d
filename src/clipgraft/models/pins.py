"""Published models that this package knows: one commit each, the size and sum of its files, and its copies.

Sizes and sums are those that the hub and others who fetched that commit list for it. The place to change when
a published model moves: a copy under another name is as good as the first where the sums are equal.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


class FileSum(NamedTuple):
    """What a file must be."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Pin:
    """A published model at one commit."""

    revision: str
    files: Mapping[str, FileSum]
    """Those of its files that are loaded. What is missing here is compared with the hub's own sums."""
    license: str
    mirrors: tuple[str, ...] = ()
    """Other hub ids that hold the same files; asked in turn where the first is gone."""


PINS = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": Pin(
        revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        license="CreativeML OpenRAIL-M",
        mirrors=("benjamin-paine/stable-diffusion-v1-5", "botp/stable-diffusion-v1-5"),
        files={
            "model_index.json": FileSum(
                541, "e2f6f22e274374010aec30c79eb2d6e53fff4a36ac0225523a92cb2d41a83347"
            ),
            "scheduler/scheduler_config.json": FileSum(
                308, "699cce92eb7c122e2eb7dfdea78e6187fda76a5ed4a8e42319b85610e620e091"
            ),
            "tokenizer/merges.txt": FileSum(
                524619, "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a"
            ),
            "tokenizer/special_tokens_map.json": FileSum(
                472, "c4864a9376a8401918425bed71fc14fc0e81f9b59ec45c1cf96cccb2df508eac"
            ),
            "tokenizer/tokenizer_config.json": FileSum(
                806, "00439066fcba73de57644cf41e4e3b9f2dbb09d7f3fc2005898ba52399045882"
            ),
            "tokenizer/vocab.json": FileSum(
                1059962, "e089ad92ba36837a0d31433e555c8f45fe601ab5c221d4f607ded32d9f7a4349"
            ),
            "text_encoder/config.json": FileSum(
                617, "845df614cb9327ae7bbea027316246fae917827407da6df13572e41b5f93b4cc"
            ),
            "text_encoder/model.safetensors": FileSum(
                492265874, "d008943c017f0092921106440254dbbe00b6a285f7883ec8ba160c3faad88334"
            ),
            "text_encoder/model.fp16.safetensors": FileSum(
                246144864, "77795e2023adcf39bc29a884661950380bd093cf0750a966d473d1718dc9ef4e"
            ),
            "unet/config.json": FileSum(
                743, "78f474de6bab3d893868f37be97b636ae65c0df3073ed3256ca458ff599b5f96"
            ),
            "unet/diffusion_pytorch_model.safetensors": FileSum(
                3438167540, "19da7aaa4b880e59d56843f1fcb4dd9b599c28a1d9d9af7c1143057c8ffae9f1"
            ),
            "unet/diffusion_pytorch_model.fp16.safetensors": FileSum(
                1719125304, "c83908253f9a64d08c25fc90874c9c8aef9a329ce1ca5fb909d73b0c83d1ea21"
            ),
            "vae/config.json": FileSum(
                547, "786a7d21647ddea6a04b9675c03d3cb45e90a2f3c6da5fbda2c54ade040036de"
            ),
            "vae/diffusion_pytorch_model.safetensors": FileSum(
                334643276, "a2b5134f4dbc140d9c11f11cba3233099e00af40f262f136c691fb7d38d2194c"
            ),
            "vae/diffusion_pytorch_model.fp16.safetensors": FileSum(
                167335342, "4fbcf0ebe55a0984f5a5e00d8c4521d52359af7229bb4d81890039d2aa16dd7c"
            ),
        },
    ),
    "openai/clip-vit-base-patch32": Pin(
        # Its main branch holds pickled weights alone; this commit holds the same ones as safetensors.
        revision="b33cedfd0df4e43b8238760678fcc89e1a0d38b3",
        license="MIT",
        files={
            "config.json": FileSum(4186, "b575ef3c36f2a057fa19e221650105052d61cc9c1a972ec15019c6261ec98770"),
            "preprocessor_config.json": FileSum(
                316, "910e70b3956ac9879ebc90b22fb3bc8a75b6a0677814500101a4c072bd7857bd"
            ),
            "tokenizer.json": FileSum(
                2224041, "b556ac8c99757ffb677208af34bc8c6721572114111a6e0aaf5fa69ff0b8d842"
            ),
            "model.safetensors": FileSum(
                605157884, "99d28a652e6ec46629ab7047a0ac82c69b1fe11e0ce672c43af65d3a9a3fc05d"
            ),
        },
    ),
}
