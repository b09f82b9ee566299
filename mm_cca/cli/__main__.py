"""``python -m mm_cca.cli``, for ``accelerate launch``."""

import sys

from mm_cca.cli.main import main

sys.exit(main())
