"""`python -m whisper_server`."""

import sys

from whisper_server.cli.main import main

sys.exit(main())
