"""Other libraries' messages and progress bars, switched off."""

import logging

import datasets
import transformers


def quiet_libraries() -> None:
    for noisy in ("transformers", "datasets", "accelerate", "open_clip", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    # Their bars for reading and writing files would hide ours for the work itself.
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
