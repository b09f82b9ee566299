"""``mm-cca validate`` looks into the checkpoint's files: config, index, headers, tokenizer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mm_cca import cli, load_adapter
from mm_cca.adapters.check import check_checkpoint
from mm_cca.config.schema import ModelConfig
from mm_cca.errors import UserError
from mm_cca.testing.tiny import FAMILIES, LAYOUTS, write_tiny
from tests.support import runs
from tests.support.fake_hub import fake_hub
from tests.support.tiny_families import image_size_of, keys_of
