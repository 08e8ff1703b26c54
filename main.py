import sys

from zotune.cli.train import main

sys.exit(main(sys.argv[1:]))
