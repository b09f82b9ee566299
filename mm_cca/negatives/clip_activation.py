"""The activation that an open_clip model's weights were trained with: GELU or QuickGELU.

OpenAI's and some other weights need QuickGELU, which is no weight: with the other activation they
load, open_clip (since version 3) warns, and every feature is wrong.
"""

from mm_cca.errors import UserError

QUICK = "-quickgelu"


def model_for_weights(name: str, pretrained: str | None) -> str:
    """The open_clip model name whose activation is that of the weights of a tag.

    Args:
        name: a model name of open_clip, such as ``ViT-L-14``.
        pretrained: a tag such as ``openai``; of a file of weights nothing is known.

    Returns:
        ``name``, or ``name-quickgelu`` for weights that need it.

    Raises:
        UserError: the model has QuickGELU and the weights are trained without, or they need it and
            open_clip has no such model.
    """
    import open_clip

    model = name.replace("/", "-")  # as open_clip reads it
    known = None if pretrained is None else open_clip.get_pretrained_cfg(model, pretrained)
    config = open_clip.get_model_config(model)
    if not known or config is None:
        return name
    has, needs = bool(config.get("quick_gelu", False)), bool(known.get("quick_gelu", False))
    # A model without a twin of the other activation was trained as its config says, whatever the
    # list of tags leaves out (roberta-ViT-B-32).
    if has == needs or (has and not model.endswith(QUICK)):
        return name
    other = f"{model}{QUICK}" if needs else model.removesuffix(QUICK)
    config = open_clip.get_model_config(other)
    right = config is not None and bool(config.get("quick_gelu", False)) == needs
    if needs and right:
        return other
    raise UserError(
        f"the weights {name} {pretrained} were trained {'with' if needs else 'without'} QuickGELU, "
        f"but the model {name} has {'GELU' if needs else 'QuickGELU'}: every feature would be "
        "wrong." + (f" Use {other} {pretrained}." if right else " Use another model or tag.")
    )
