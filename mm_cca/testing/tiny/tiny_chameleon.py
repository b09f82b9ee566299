"""Tiny checkpoints of the Chameleon family: Anole and Lumina-mGPT.

The hub's folders were written by transformers 4.43: ``leloy/Anole-7b-v0.1-hf`` from Meta's download
by its ``convert_chameleon_weights_to_hf.py`` with the decoder kept, ``Alpha-VLLM/Lumina-mGPT-*`` by
Lumina-mGPT's own classes, which save no image tokenizer, and for -512 no tokenizer.
"""

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonImageProcessor,
    ChameleonProcessor,
    ChameleonVQVAEConfig,
    PreTrainedTokenizerFast,
)

from mm_cca.adapters.lumina_mgpt import ChameleonXLLMXForConditionalGeneration
from mm_cca.adapters.vqgan import VQDecoder
from mm_cca.testing.tiny.old_chameleon import (
    write_old_configs,
    write_old_processor,
    write_old_tokenizer,
    write_shards,
)
from mm_cca.testing.tiny.sizes import (
    CAPTIONS,
    CODEBOOK_SIZE,
    TEXT_VOCABULARY,
    Layout,
    hidden_size,
    spread,
    use_many_codes,
)

NORM_ROWS = 2
"""Rows of Lumina-mGPT's norms for its four heads here, as 8 for 64 heads in the 34B model."""


def write_chameleon(folder: Path, side: int, layout: Layout, head_size: int | None) -> None:
    model = ChameleonForConditionalGeneration(_config(side, 2, head_size))
    _randomise(model)
    vq = model.model.vqmodel
    vq.decoder = VQDecoder(vq.config)  # in the same weights file, as in Anole's conversion
    words = chameleon_tokenizer()
    if layout == "hub":
        language = {n: w for n, w in model.state_dict().items() if "vqmodel" not in n}
        halved = {name: weight.to(torch.bfloat16) for name, weight in language.items()}
        write_shards(folder, model.state_dict() | halved)
        write_old_configs(folder, model.config, architecture="ChameleonForConditionalGeneration")
        write_old_tokenizer(folder, words)
        write_old_processor(folder, side)
    else:
        model.save_pretrained(folder)
        pictures = ChameleonImageProcessor()
        ChameleonProcessor(pictures, words, image_seq_length=side * side).save_pretrained(folder)


def write_lumina_mgpt(folder: Path, side: int, layout: Layout, head_size: int | None) -> None:
    config = _config(side, 4, head_size)
    config.model_parallel_size = NORM_ROWS
    config.mask_image_logits, config.z_loss_weight, config.dropout = False, 1e-5, 0.05
    model = ChameleonXLLMXForConditionalGeneration(config)
    _randomise(model)
    vq = model.model.vqmodel
    decoder = VQDecoder(vq.config).state_dict()
    tokenizer_weights = vq.state_dict() | {f"decoder.{n}": w for n, w in decoder.items()}
    # Two downloads of their own: Meta's image tokenizer, and the 768 model's tokenizer.
    torch.save({"state_dict": tokenizer_weights}, folder / "vqgan.ckpt")
    words = chameleon_tokenizer()
    if layout == "hub":
        (folder / "tokenizer").mkdir()
        write_old_tokenizer(folder / "tokenizer", words)
        language = {n: w for n, w in model.state_dict().items() if "vqmodel" not in n}
        write_shards(folder, {name: weight.to(torch.bfloat16) for name, weight in language.items()})
        write_old_configs(folder, config, architecture=type(model).__name__)
    else:
        stock = ChameleonForConditionalGeneration(config)
        stock.load_state_dict(
            {n: _row_per_head(n, w, config) for n, w in model.state_dict().items()}
        )
        stock.save_pretrained(folder)
        words.save_pretrained(folder)


def _row_per_head(name: str, weight: torch.Tensor, config: ChameleonConfig) -> torch.Tensor:
    if "q_norm" not in name and "k_norm" not in name:
        return weight
    return weight.repeat_interleave(config.num_attention_heads // NORM_ROWS, dim=0)


def _config(side: int, heads: int, head_size: int | None) -> ChameleonConfig:
    width = hidden_size(heads, head_size)
    vocabulary = chameleon_tokenizer().get_vocab()
    return ChameleonConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=side * (side + 1) + 256,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        vocabulary_map=vocabulary,
        vq_config=ChameleonVQVAEConfig(
            embed_dim=16,
            num_embeddings=CODEBOOK_SIZE,
            latent_channels=16,
            resolution=16 * side,
            base_channels=32,
            channel_multiplier=[1, 1, 1, 1, 1],
            num_res_blocks=1,
        ).to_dict(),
    )


def _randomise(model: ChameleonForConditionalGeneration) -> None:
    spread(model.model.layers, model.model.embed_tokens, model.lm_head)
    use_many_codes(model.model.vqmodel)


def chameleon_tokenizer() -> PreTrainedTokenizerFast:
    """Chameleon's special tokens and image tokens by their real names, codes in permuted order."""
    order = torch.randperm(CODEBOOK_SIZE, generator=torch.Generator().manual_seed(0)).tolist()
    reserved = [8706, *range(8799, 8930)]
    names = [
        *("<s>", "<pad>", "</s>", "<unk>"),
        *(_image_token(code) for code in order),
        *("<eoss>", "<racm3:break>", "<image>"),
        *(f"<reserved{number:05d}>" for number in reserved),
    ]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = _pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT_VOCABULARY + len(names),
        min_frequency=2,
        show_progress=False,
        special_tokens=names,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(CAPTIONS, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        sep_token="<reserved08706>",
        image_token="<image>",
        boi_token="<racm3:break>",
        eoi_token="<eoss>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Chameleon's: digits and punctuation one by one, then as GPT-2 (not as LlamaTokenizer)."""

    def alone(pattern: str) -> pre_tokenizers.PreTokenizer:
        return pre_tokenizers.Split(Regex(pattern), "isolated")

    return pre_tokenizers.Sequence(
        [
            alone("<sentinel:[0-9]+>"),
            alone("(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z"),
            alone("([\\t\\n]|    |  )"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


def _image_token(code: int) -> str:
    """``IMGIMG``, the code's digits as letters A to J, ``Z``."""
    return "IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(code)) + "Z"
