"""``mm-cca validate`` looks into the checkpoint's files: config, index, headers, tokenizer."""
