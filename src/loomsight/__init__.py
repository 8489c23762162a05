"""Fabric inspection that learns a new fabric from a few metres of good cloth.

The command line is ``loomsight --help``. From Python, start with :func:`loomsight.learn.learn`
and :func:`loomsight.inspection.line.inspect`. Importing this package loads neither torch nor OpenCV.
"""

__version__ = "0.1.0"
