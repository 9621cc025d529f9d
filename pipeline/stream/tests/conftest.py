"""Puts the package on the path and offers clips cut as the ingest cuts them."""

import os
import sys

HERE = os.path.dirname(__file__)
sys.path[:0] = [HERE, os.path.dirname(HERE)]
