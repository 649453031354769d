"""Settings of every stage: frozen, strict models, without torch."""

from typing import Annotated, Literal

from pydantic import Field

from clipgraft.sampling_params import InferenceConfig, SamplingParams, TextToImageParams
from clipgraft.section import (
    FROM_LIST,
    Count,
    Every,
    ImageFormat,
    LatentCrop,
    LocalPath,
    MixedPrecision,
    ModelName,
    NotNegative,
    NumSeeds,
    Positive,
    Rank,
    ResizeMode,
    Section,
    Source,
    TrackerNames,
    Words,
)

FLATLAND8K = "flatland8k"
"""What no source stands for."""


class SourceSettings(Section):
    """A source of captioned images, and how it is read."""

    source: Source = ""
    """Folder, file, pattern or URL of captioned images; see docs/data.md. Empty: flatland8k is drawn."""
    include_unsplit: bool = False
    """Train on images outside every split list instead of excluding them."""
    image_field: str = ""
    """Column or JSON field of images' names, as the next one of captions; empty: a common name is found."""
    caption_field: str = ""
    separator: Literal["", "tab", "comma", "semicolon", "bar"] = ""
    """Between a table's columns; empty: the one that its header fits."""
    caption_extension: str = ""
    """Of caption files beside images, such as `.caption`; empty: `.txt` or `.caption`."""
    num_train_images: Annotated[int, Field(ge=0, le=10**12)] = 0
    """Images in an epoch of shards whose number is stated nowhere else; 0 = as counted."""


class WeightedSource(SourceSettings):
    """One of several sources."""

    weight: Positive = 1.0
    """Times that each of its training images comes in an epoch, on average."""


class DataSettings(SourceSettings):
    """Captioned images, of one source or of several."""

    sources: Annotated[tuple[WeightedSource, ...], FROM_LIST] = ()
    """Several sources in place of `source`, each with a `weight` and the settings above."""
    on_damaged: Literal["stop", "skip"] = "stop"
    """At a damaged image; skip: named and excluded before, or replaced while training (docs/training.md)."""
    cache_gb: NotNegative = 20.0
    """Bound of the cache in gigabytes; the least recently used files are evicted beyond it."""
    max_train_images: Every = 0
    """Use the first n training images only; 0 = all."""
    max_val_images: Every = 0
    """As `max_train_images`; so is max_test_images."""
    max_test_images: Every = 0

    @property
    def title(self) -> str:
        """Return names of the sources for messages and reports."""
        if self.sources:
            return " + ".join(each.source or FLATLAND8K for each in self.sources)
        return self.source or FLATLAND8K


class ModelSettings(Section):
    """A model: folder, hub id, `.safetensors` file (bases only) or `flatland`."""

    name: ModelName
    revision: str = ""
    """Commit of a hub id, 40 hexadecimal digits; empty: its own pin, or main with a warning."""


class OptimConfig(Section):
    """Optimizer settings of every stage trained by gradient descent (AdamW)."""

    learning_rate: Positive = 1e-5
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after warm-up; linear and cosine end at 0."""
    warmup_steps: Every = 0
    """Steps of linear rise from 0; at most half of the run's."""
    weight_decay: NotNegative = 0.01
    """Decay of linear, convolution and embedding weights only."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on the learning rate from each layer of a tower to the one below it."""
    max_grad_norm: Positive = 1.0
    """Global gradient norm to clip at."""
    gradient_accumulation_steps: Count = 1
    """Forward passes per optimizer step; an epoch's last group may be smaller."""
    accumulation: Literal["joint", "separate"] = "joint"
    """joint: one loss over all passes of a step, as one batch; separate: the mean of their losses."""
    mixed_precision: MixedPrecision = "auto"
    """auto: on CUDA bf16, or fp16 where the GPU has none; bf16 on a CPU that is faster in it; else no.

    Master weights stay float32."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the moving average that replaces the weights at the end; 0 = none."""


class TrainSettings(OptimConfig):
    """Settings of every stage that trains by gradient descent."""

    batch_size: Count = 32
    """Items in one forward pass."""
    num_epochs: Annotated[int, Field(ge=0)] = 9
    """Passes over the training split."""
    log_every: Count = 1
    """Steps whose metrics are read from the device at once; from 2 on, a GPU waits for none of them."""
    checkpoint_every: Every = 500
    """Steps between resumable checkpoints."""
    save_total_limit: Count = 2
    """Newest checkpoints to keep."""
    num_workers: Annotated[int, Field(ge=-1, le=256)] = -1
    """Processes that read images; -1 = one per core if they are decoded while training, else none."""
    report_to: TrackerNames = ()
    """Trackers that also get log and validation metrics: tensorboard, wandb, mlflow, trackio, or all."""


class FinetuneSettings(TrainSettings):
    """Contrastive fine-tuning: AdamW, 1e-5, batch 32, norm 1.0, nine epochs."""

    batch_size: Count = 32
    """Images per forward pass, over all processes; each with `captions_per_image` captions."""
    captions_per_image: Annotated[int, Field(ge=1, le=5)] = 1
    """Random captions per image and epoch; the image is encoded once."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """CLIP's loss or SigLIP's."""
    duplicate_images: Literal["mask", "positive", "negative"] = "mask"
    """Other captions of the same image: ignored, positives too, or negatives (plain CLIP)."""
    resize_mode: ResizeMode = ""
    """shortest: short side to CLIP's size, centre crop; longest: long side, black bars; squash: both.

    Empty: as the CLIP's own processor does, shortest for most. The result's processor keeps it."""
    crop_scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Least area of a random crop from anywhere in a training image, as a share of the usual; 1 = none."""
    frozen_vision_layers: Annotated[int, Field(ge=-1)] = 0
    """Embeddings and the first n layers of the vision tower stay as they are; -1 = the whole tower."""
    frozen_text_layers: Annotated[int, Field(ge=-1)] = 0
    """Embeddings and the first n layers of the text tower stay as they are; -1 = the whole tower."""
    lora_rank: Rank = 0
    """Rank of low-rank attention updates, merged at the end; 0 = train all weights."""
    distill_weight: NotNegative = 0.0
    """Weight of the hidden states' distance from the original text tower's; 0 = none."""
    best_metric: str = ""
    """Validation metric whose best weights are kept; empty: the last weights."""
    patience: Every = 0
    """Validations without a better `best_metric` before training stops; 0 = never stops early."""
    preview_steps: Every = 0
    """Steps between previews: images of `generate.prompts` from the CLIP in training; 0 = never."""
    preview_graft: LocalPath = ""
    """Graft folder whose bridge and base generate the previews."""
    compile: bool = False
    """Compile both towers with torch.compile: minutes at the start, faster steps after."""


class BridgeSettings(TrainSettings):
    """The map from CLIP's hidden states to the teacher's."""

    learning_rate: Positive = 2e-3
    batch_size: Count = 128
    num_epochs: Annotated[int, Field(ge=0)] = 4
    """Epochs of the residual; 0 = the closed-form linear map alone."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: Every = 50
    captions: LocalPath = ""
    """Text file with one caption per line, replacing the source's captions."""
    max_captions: Every = 0
    """Use the first n training captions only; 0 = all."""
    allow_few_captions: bool = False
    """Accept fewer than 100 captions."""
    exclude_words: Words = ()
    """Words that the base does not know: captions with one are left out; a list, or a file."""
    ridge: NotNegative = 1e-4
    """Ridge penalty, relative to the mean square of CLIP's hidden states."""
    by_token_class: bool = True
    """One linear map each for words, EOS and padding, with a bias per position; off: one for all."""
    hidden_size: Annotated[int, Field(ge=1, le=65_536)] = 1024
    """Width of the residual MLP."""
    num_attention_blocks: Annotated[int, Field(ge=0, le=2)] = 2
    """Causal attention blocks before the residual MLP."""
    cosine_weight: NotNegative = 1.0
    """Weight of the direction's error (1 - cosine) in the residual's loss."""
    norm_weight: NotNegative = 0.1
    """Weight of the norm's error."""
    key_value_weight: NotNegative = 1.0
    """Weight of the error in the U-Net's cross-attention keys and values."""


class RefineSettings(TrainSettings):
    """Training of the bridge through the frozen U-Net, on images."""

    learning_rate: Positive = 1e-4
    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: Every = 50
    batch_size: Count = 16
    num_epochs: Annotated[int, Field(ge=0)] = 0
    """Passes over the training images; 0 = no refining."""
    crop: LatentCrop = "buckets"
    """buckets: to the size nearest in aspect ratio, one size a batch; center: the middle square."""
    noise_weight: NotNegative = 1.0
    """Weight of the error against the noise itself, which pulls towards the images."""
    teacher_weight: NotNegative = 1.0
    """Weight of the error against the teacher's noise prediction, which pulls towards the base."""
    feature_weight: NotNegative = 0.1
    """Weight of the relative error of each U-Net block's output against the teacher's."""
    teacher_end: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Factor on the last two weights at the end; below 1 the images pull beyond the teacher."""
    caption_drop: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of captions replaced by the empty prompt."""
    timestep_sampling: Literal["uniform", "high_noise"] = "uniform"
    """high_noise: in proportion to the timestep, as the text acts early."""
    snr_gamma: NotNegative = 0.0
    """Timestep weights clamp(SNR, 1, this) / SNR: largest at high noise, unlike min-SNR; 0 = equal."""
    text_layers: Every = 0
    """Last layers of the text tower to train too."""
    text_learning_rate: Positive = 1e-6
    text_lora_rank: Rank = 0
    """Rank of low-rank updates of those layers, merged at the end; 0 = train their weights."""
    gradient_checkpointing: bool = False
    """Recompute the U-Net's activations: less memory, a third more time."""


class DistillSettings(TrainSettings):
    """Training of the base's own text encoder towards a graft's states.

    The learning rate is a guess: 3e-3, the better of two on flatland (192 wide, 3 layers, batches of 128),
    times 192 / 768 for Stable Diffusion's width (with Adam it goes with 1 / width: Yang et al. 2022, "Tensor
    Programs V"), 3 / 12 for its layers, whose changes add up, and 1 / 2 for a quarter of the batch.
    """

    learning_rate: Positive = 1e-4
    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: Every = 50
    weight_decay: NotNegative = 0.0
    """Decay would also change the states that are to be held."""
    num_epochs: Annotated[int, Field(ge=0)] = 0
    """Passes over the captions; 0 = no distilling."""
    captions: LocalPath = ""
    """Text file with one caption per line, replacing the source's captions."""
    max_captions: Every = 0
    """Use the first n training captions only; 0 = all."""
    new_words: Literal["auto"] | Words = ()
    """Words that the base is to learn from the graft: a list, a file with one per line, or found (auto)."""
    hold: LocalPath = ""
    """Text file with further captions, without new words, whose states are held."""
    text_layers: Every = 0
    """Last layers of the text encoder to train; 0 = all, and the token embeddings."""
    lora_rank: Rank = 0
    """Rank of low-rank attention updates, merged at the end; 0 = train the weights."""
    key_value_weight: NotNegative = 1.0
    """Weight of the error in the U-Net's cross-attention keys and values; 0 = that of states alone."""
    gradient_checkpointing: bool = False
    """Recompute the text encoder's activations: a third less memory, a quarter more work."""


class GenerateSettings(SamplingParams, InferenceConfig):
    """Generation of a run's images."""

    prompts: Annotated[tuple[str, ...], FROM_LIST] = (
        "A dog running on the beach at sunset",
        "A colorful garden with blooming flowers",
    )
    batch_size: Count = 4
    """Images generated at once; changes speed and memory alone."""
    image_format: ImageFormat = "png"
    """jpeg: of quality 95; webp: without loss. All hold the settings."""


class EvaluateSettings(TextToImageParams):
    """Evaluation of a run's text encoders, on the same prompts and seeds."""

    num_prompts: Every = 0
    """First n of each set: held-out captions, flatland's 240 prompts (and n / 2 of its 120 composed ones),
    `prompts`; 0 = no evaluation."""
    num_images_per_prompt: NumSeeds = 1
    """2 or more also measure the diversity between seeds."""
    prompts: LocalPath = ""
    """Text file with one prompt per line, unlike the training captions: shows forgetting."""
    scorer: ModelName = ""
    """CLIP that scores images: folder, hub id or flatland; empty: the CLIP before fine-tuning."""
    scorer_revision: str = ""
    force: bool = False
    """Measure distances between distributions even of few images."""
    batch_size: Count = 16
