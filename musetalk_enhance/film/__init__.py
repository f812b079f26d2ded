"""A film taken apart and put together again: every frame, every time stamp, every sound.

`index_film` lists the frames, `read_segment` reads some of them, `SegmentWriter` writes them as a file of their
own, and `join_film` puts such files together under the film's own times, with its sound. Whatever is not
changed on purpose stays as it was: pixels outside a box, colours, variable frame rates, rotation, packets of
sound.
"""

from .index import AudioFacts, FilmIndex, index_film
from .joining import check_target, join_film
from .reading import Shot, read_segment
from .writing import PRESETS, SegmentWriter

__all__ = [
    "PRESETS",
    "AudioFacts",
    "FilmIndex",
    "SegmentWriter",
    "Shot",
    "check_target",
    "index_film",
    "join_film",
    "read_segment",
]
