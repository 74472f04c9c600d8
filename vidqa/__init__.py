"""vidqa answers questions about a library of videos, on one's own hardware.

This module holds light names only: importing it loads no model library. The verbs live in
`vidqa.ingest`, `vidqa.search` and `vidqa.ask`, the command line in `vidqa.cli`.
"""

from vidqa.errors import VidqaError
from vidqa.types import Answer, Citation, IngestReport, Moment, Scene, Video

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Citation",
    "IngestReport",
    "Moment",
    "Scene",
    "Video",
    "VidqaError",
    "__version__",
]
