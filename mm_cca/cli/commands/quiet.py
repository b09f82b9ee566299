"""Switch off the messages and progress bars of other libraries."""

import logging

import datasets
import huggingface_hub
import transformers


def quiet_libraries() -> None:
    """Show only errors of other libraries, and none of their progress bars."""
    for library in ("transformers", "datasets", "accelerate", "open_clip", "matplotlib"):
        logging.getLogger(library).setLevel(logging.ERROR)
    # Otherwise open_clip's first message sets up the printing of everybody's, ours too.
    logging.basicConfig(format="%(message)s")
    # It prints its retries itself.
    huggingface_hub.utils.logging.disable_propagation()
    # Their bars for file access would hide ours.
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
