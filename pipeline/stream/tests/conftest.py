"""Puts the package and the tests' own modules on the path."""

import os
import sys

HERE = os.path.dirname(__file__)
sys.path[:0] = [HERE, os.path.dirname(HERE)]
