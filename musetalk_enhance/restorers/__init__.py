"""Network families that turn a face crop into a sharper one, one per file; `catalog` knows them all."""

from .base import LoadRequest, Restorer, RestorerRecord

__all__ = ["LoadRequest", "Restorer", "RestorerRecord"]
