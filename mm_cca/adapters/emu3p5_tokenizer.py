"""Emu3.5's text tokenizer, and what its vocabulary tells: where codes start, and plain Qwen3."""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerFast
from transformers.utils.hub import cached_file

from mm_cca.adapters.families import EMU3P5_VOCABULARY
from mm_cca.adapters.loading import CheckpointError, reading_checkpoint
from mm_cca.adapters.tiktoken_bpe import read_tiktoken
from mm_cca.errors import UserError

BOS, ROW_END = "<|extra_203|>", "<|extra_200|>"
SPECIAL_TOKENS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *(f"<|extra_{number}|>" for number in range(205)),
    *("<|image token|>", "<|image start|>", "<|image end|>"),
]
"""In the order of their ids, after the text vocabulary; the codes follow."""
TOKENIZER_FOLDER = "tokenizer_emu3_ibq"
NO_TOKENIZER = (
    f"BAAI keeps it in https://github.com/baaivision/Emu3.5, src/{TOKENIZER_FOLDER}: copy that "
    "folder into the folder of the checkpoint or of the image tokenizer, or set model.tokenizer to "
    "it (its Python is not run)."
)


def first_code(vocabulary: dict[str, int]) -> int:
    """Codes are what follows the special tokens, of which this is the last."""
    return vocabulary["<|image end|>"] + 1


def refuse_plain_qwen3(path: str, total: int, vocabulary: dict[str, int]) -> None:
    """Raises UserError for a folder that stock classes wrote and that is not Emu3.5.

    Told by a tokenizer without its tokens, or a vocabulary that ends before the codes start.
    """
    lacks = [token for token in (ROW_END, "<|image end|>") if token not in vocabulary]
    if lacks or total <= first_code(vocabulary):
        why = f"the tokenizer has no {lacks[0]}" if lacks else "it has no room for image codes"
        raise UserError(
            f"model.path {path!r} holds Qwen3 with a vocabulary of {total}, and {why}: it is plain "
            f"Qwen3 or a fine-tune of it, not Emu3.5 ({EMU3P5_VOCABULARY} tokens). Set model.path "
            f"to BAAI/Emu3.5-Image. If it is Emu3.5 with another tokenizer: {NO_TOKENIZER}"
        )


def refuse_other_vocabulary(total: int, vocabulary: dict[str, int], codebook: int) -> None:
    """Raises UserError where tokenizer, image tokenizer and checkpoint don't belong together."""
    for token in (ROW_END, "<|image end|>"):
        if token not in vocabulary:
            raise UserError(f"the tokenizer has no token {token!r}. {NO_TOKENIZER}")
    first = first_code(vocabulary)
    if first + codebook != total:
        raise UserError(
            f"the checkpoint's vocabulary of {total} is not {first} text and special tokens "
            f"with the image tokenizer's {codebook} codes: model.path, model.image_tokenizer "
            "and the text tokenizer are not of the same family."
        )


def read_tokenizer(sources: Sequence[str]) -> PreTrainedTokenizerFast:
    """From the first of the folders or hub names that holds one: the stock file, or BAAI's."""
    for source in sources:
        if _file(source, "tokenizer.json"):
            with reading_checkpoint():
                tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(source)
            return tokenizer
        for name in ("emu3.tiktoken", f"{TOKENIZER_FOLDER}/emu3.tiktoken"):
            file = _file(source, name)
            if file is not None:
                return PreTrainedTokenizerFast(
                    tokenizer_object=read_tiktoken(Path(file), SPECIAL_TOKENS),
                    bos_token=BOS,
                    eos_token="<|extra_204|>",
                    pad_token="<|endoftext|>",
                    padding_side="left",
                    model_input_names=["input_ids", "attention_mask"],
                )
    raise CheckpointError(f"no tokenizer in {' or '.join(sources)}. {NO_TOKENIZER}")


@reading_checkpoint()
def _file(source: str, name: str) -> str | None:
    """The path of a file of a folder or hub name; None where there is none."""
    found: str | None = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    return found
