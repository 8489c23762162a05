"""Fabric inspection that learns a new fabric from a few metres of good cloth.

The command line is ``loomsight --help``. From Python, start with :func:`loomsight.learn.learn`
and :func:`loomsight.inspection.line.inspect`. Importing this package loads neither torch nor OpenCV.
"""

import os

__version__ = "0.1.0"

# torch's threads wait for one another without giving up their cores, for a millisecond and more. Where
# another program needs a core too, all of them wait like that for the one that has none. A thirtieth of that
# wait costs nothing on an idle machine. It is read when torch is loaded, and what the user says goes first.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
