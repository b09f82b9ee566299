"""The keys of the demo's own jobs: its image tokenizer and its scorer."""

from dataclasses import dataclass
from typing import Literal

from mm_cca.config.keys import DEMO, MAX_SEED, key
from mm_cca.config.schema_train import Precision


@dataclass
class TokenizerConfig:
    """The demo's image tokenizer, and the untrained decoder around it (job: tokenizer)."""

    num_codes: int = key(512, at_least=2, at_most=1_000_000, decides=(DEMO,))
    """Size of the codebook."""
    code_dim: int = key(8, at_least=1, at_most=65_536, decides=(DEMO,))
    """Dimension of the codebook vectors."""
    base_channels: int = key(32, at_least=1, at_most=65_536, decides=(DEMO,))
    """Channels of the convolutions at full resolution."""
    channel_multiplier: list[int] = key(
        [1, 2, 2], at_least=1, at_most=1_024, items=(1, None), decides=(DEMO,)
    )
    """Channels at each resolution as multiples of base_channels; each entry after the first halves
    height and width, so three entries give one code per 4x4 pixels."""
    text_vocab_size: int = key(2000, at_least=1, at_most=1_000_000, decides=(DEMO,))
    """Size of the text vocabulary, which is learned from the captions."""
    decoder_hidden_size: int = key(256, at_least=1, at_most=65_536, decides=(DEMO,))
    """Width of the untrained decoder."""
    decoder_intermediate_size: int = key(640, at_least=1, at_most=1_000_000, decides=(DEMO,))
    """Width inside the feed-forward layers of the decoder."""
    decoder_layers: int = key(6, at_least=1, at_most=1_000, decides=(DEMO,))
    """Layers of the decoder."""
    decoder_heads: int = key(8, at_least=1, at_most=1_000, decides=(DEMO,))
    """Attention heads of the decoder; must divide decoder_hidden_size."""
    steps: int = key(at_least=1, at_most=1_000_000_000, decides=(DEMO,))
    """Optimizer steps of the image tokenizer."""
    batch_size: int = key(64, at_least=1, at_most=100_000, decides=(DEMO,))
    """Images per step."""
    learning_rate: float = key(1.5e-3, above=0, at_most=1, decides=(DEMO,))
    """AdamW's peak learning rate, reached after the warm-up."""
    warmup_steps: int = key(50, at_least=0, at_most=1_000_000_000, decides=(DEMO,))
    """Steps over which the learning rate rises linearly from 0."""
    commitment: float = key(0.25, at_least=0, at_most=1_000_000, decides=(DEMO,))
    """Weight of the commitment loss, which keeps the encoder near the codebook."""
    reseed_every: int = key(50, at_least=1, at_most=1_000_000_000, decides=(DEMO,))
    """Steps between replacements of unused codes by vectors of the data."""
    mixed_precision: Precision = key("no", decides=(DEMO,))
    """Autocast of the forward pass: bf16, fp16, no, or auto: bf16 where the hardware has units for
    it, otherwise no."""
    seed: int = key(0, at_least=0, at_most=MAX_SEED, decides=(DEMO,))
    """Seed of the initial weights and of the order of the images."""


@dataclass
class ScorerConfig:
    """The two towers of one of the demo's scorers (job: scorer)."""

    architecture: str = key("vit", allowed="vit, or the name of a timm network", decides=(DEMO,))
    """The vision tower: vit is open_clip's vision transformer, shaped by the next three keys; any
    other name is a network of timm, such as resnet10t, without its classifier."""
    patch_size: int = key(4, at_least=1, at_most=16_384, decides=(DEMO,))
    """Side of a patch of the vision transformer, in pixels."""
    vision_width: int = key(160, at_least=32, at_most=65_536, decides=(DEMO,))
    """Width of the vision transformer; a multiple of 32, the width of a head."""
    vision_layers: int = key(4, at_least=1, at_most=1_000, decides=(DEMO,))
    """Layers of the vision transformer."""
    input_size: int | None = key(None, at_least=1, at_most=16_384, decides=(DEMO,))
    """Side in pixels to which images are resized for the vision tower (bicubic); null: not resized.
    Networks that reduce the resolution 32 times need more pixels than the demo's images have."""
    head: Literal["linear", "mlp"] = key("linear", decides=(DEMO,))
    """From the features of a timm network to the common space: one matrix, or two with a GELU."""
    frozen: str | None = key(None, decides=(DEMO,), content="file")
    """File of published weights of the timm network (safetensors, timm's names); the network then
    stays as it is, and only the head and the text tower are trained. null: train everything."""
    rows: Literal["train", "all"] = key("train", decides=(DEMO,))
    """Which images are trained on: train is data.train_split; all adds data.heldout_split, for a
    judge, which is not a contestant."""
    reconstructions: str | None = key(None, decides=(DEMO,))
    """Checkpoint whose image tokenizer reconstructs half of the training images, so that the
    tokenizer's blur is no mistake to this scorer; null: drawings only."""
    adapter: str = key(
        "emu3", allowed="a built-in adapter, or package.module:Class", decides=(DEMO,)
    )
    """The adapter that reads scorer.reconstructions."""
    variants: int = key(4, at_least=1, at_most=1_000, decides=(DEMO,))
    """Augmented versions of every image that are made before training where they are costly: the
    reconstructed ones, and all those of a frozen network. Other images are augmented anew in every
    step."""
    text_width: int = key(128, at_least=32, at_most=65_536, decides=(DEMO,))
    """Width of the text transformer; a multiple of 32, the width of a head."""
    text_layers: int = key(2, at_least=1, at_most=1_000, decides=(DEMO,))
    """Layers of the text transformer."""
    embed_dim: int = key(96, at_least=1, at_most=65_536, decides=(DEMO,))
    """Dimension of the image and text features."""
    text_vocab_size: int = key(2000, at_least=1, at_most=1_000_000, decides=(DEMO,))
    """Size of the text vocabulary, which is learned from the captions."""
    steps: int = key(at_least=1, at_most=1_000_000_000, decides=(DEMO,))
    """Optimizer steps."""
    batch_size: int = key(256, at_least=2, at_most=100_000, decides=(DEMO,))
    """Pairs of image and caption per step; each is contrasted with all others of the batch."""
    learning_rate: float = key(1e-3, above=0, at_most=1, decides=(DEMO,))
    """AdamW's peak learning rate, reached after the warm-up."""
    weight_decay: float = key(0.2, at_least=0, at_most=100, decides=(DEMO,))
    """AdamW's weight decay, on matrices only."""
    warmup_steps: int = key(100, at_least=0, at_most=1_000_000_000, decides=(DEMO,))
    """Steps over which the learning rate rises linearly from 0."""
    mixed_precision: Precision = key("no", decides=(DEMO,))
    """Autocast of the forward pass: bf16, fp16, no, or auto: bf16 where the hardware has units for
    it, otherwise no."""
    seed: int = key(0, at_least=0, at_most=MAX_SEED, decides=(DEMO,))
    """Seed of the initial weights and of the order of the pairs."""
