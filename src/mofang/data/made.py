"""Sequences whose items are not there until they are asked for."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar, overload

T = TypeVar("T")


class Made(Sequence[T]):
    """Items are made by number; a slice is a list."""

    @abstractmethod
    def make(self, number: int) -> T:
        """The item of that number."""

    @overload
    def __getitem__(self, number: int) -> T: ...
    @overload
    def __getitem__(self, number: slice) -> list[T]: ...
    def __getitem__(self, number: int | slice) -> T | list[T]:
        if isinstance(number, slice):
            return [self.make(each) for each in range(*number.indices(len(self)))]
        return self.make(number)
