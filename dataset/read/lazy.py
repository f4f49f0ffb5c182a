"""A sequence whose items are made when asked for."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TypeVar, overload

Item = TypeVar("Item")


class Lazy(Sequence[Item]):
    """Items 0 to len - 1, indexed as a list is."""

    @abstractmethod
    def item(self, index: int) -> Item:
        """Return one item; index: 0 to len - 1."""

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        """Return one item, or several.

        Raises:
            IndexError: there are fewer.
        """
        count = len(self)
        if isinstance(index, slice):
            return [self.item(i) for i in range(*index.indices(count))]
        if not -count <= index < count:
            raise IndexError(f"sample {index} of {count}")
        return self.item(index % count)

    def __iter__(self) -> Iterator[Item]:
        return map(self.item, range(len(self)))
