"""``python -m obskit_gunicorn`` is the command ``obskit-gunicorn``."""

from __future__ import annotations

import sys

from obskit_gunicorn.cli import main

if __name__ == "__main__":
    sys.exit(main())
