"""Which keys of a recipe decide the result of a stage."""

DEPENDS_ON = (
    "data.path",
    "data.image_column",
    "data.image_size",
    "data.variants",
    "data.max_zoom",
    "data.max_shift",
    "loss.uncond_ratio",
    "loss.negatives",
    "loss.num_negatives",
    "loss.negatives_embedding",
    "loss.hard_candidates",
    "loss.max_similarity",
    "loss.whole_vocabulary",
    "train.seed",
    "train.micro_batch_size",
    "train.mixed_precision",
)
"""Keys of a recipe, beside those of the model, that the numbers depend on, to the last bit."""


NOT_ABOUT_TOKENS = (
    "max_bad",
    "encode_batch_size",
    "train_split",
    "heldout_split",
    "attribute_words",
    "text_path",
)
