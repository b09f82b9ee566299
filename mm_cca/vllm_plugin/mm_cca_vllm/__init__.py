"""Tells vLLM of one class; a distribution of its own, installed beside vLLM and not with mm-cca.

``pip install DIR`` with this folder's parent, in the environment of the engine.
"""


def register() -> None:
    """Called by vLLM in each of its processes. The class is imported only if a folder names it."""
    from vllm import ModelRegistry  # noqa: PLC0415

    name = "JanusImageForCausalLM"
    ModelRegistry.register_model(name, f"mm_cca_vllm.janus_image:{name}")
