"""Janus's image codes as tokens after the text (``mm_cca/adapters/janus_engine.py`` writes them).

vLLM's Llama with another head: ``Linear, GELU, Linear`` over image codes only, so that text is
never drawn and an image needs no grammar.
"""

import torch
import torch.nn.functional as F
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.llama import LlamaForCausalLM


class JanusImageForCausalLM(LlamaForCausalLM):
    """T tokens, D hidden size, K image codes, V vocabulary: the text, then the codes."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = vllm_config.model_config.hf_config
        codes, width = int(config.num_image_codes), int(config.hidden_size)
        self.num_text = int(config.vocab_size) - codes
        if isinstance(self.lm_head, ParallelLMHead):  # the last stage of a pipeline has it
            self.image_proj = nn.Linear(width, width)
            self.lm_head = ParallelLMHead(codes, width, bias=True)
            self.logits_processor = LogitsProcessor(codes)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """[T, D] -> [T, V], minus infinity for text; None on ranks that gather nothing."""
        inner = F.gelu(self.image_proj(hidden_states))
        logits = self.logits_processor(self.lm_head, inner, self.lm_head.bias)
        return None if logits is None else F.pad(logits, (self.num_text, 0), value=-torch.inf)

    def compute_logits_local(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """For batch-sharded sampling, which joins the logits of ranks by vocabulary."""
        raise NotImplementedError("Janus's head can't be sampled batch-sharded: leave that off")
