"""What a key may name. An extension adds its own entries before any config is checked."""

import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar, get_args, get_type_hints

T = TypeVar("T")
C = TypeVar("C", bound=type)


class Registry(Mapping[str, T], Generic[T]):
    """Names, and what each stands for.

    In the type of a key it admits these names: `beta_schedule: Annotated[str, BETA_SCHEDULES]`.

    Args:
        noun: what an entry is, for messages, such as "noise schedule".
    """

    additions = 0  # to all registries so far: a schema that was built before one does not admit it

    def __init__(self, noun: str, entries: Mapping[str, T] | None = None) -> None:
        self.noun = noun
        self._entries: dict[str, T] = dict(entries or {})

    def add(self, name: str, entry: T) -> T:
        """Add an entry under a new name. What is defined again, as by a notebook's cell, takes its own place.

        Raises:
            ValueError: the name is taken by another entry.
        """
        known = self._entries.get(name, entry)
        if known is not entry and _place(known) != _place(entry):
            raise ValueError(f"there is a {self.noun} named {name} already; choose another name")
        self._entries[name] = entry
        Registry.additions += 1
        return entry

    def register(self, name: str) -> Callable[[T], T]:
        """The same as a decorator."""
        return lambda entry: self.add(name, entry)

    def __getitem__(self, name: str) -> T:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.literal_schema(list(self))


class Group(Registry[type[T]]):
    """The choices of a config group: classes of keys, told apart by their key `name`.

    In the type of a key it admits these classes: `loss: Annotated[Loss, LOSSES]`.
    """

    def choice(self, choice: C) -> C:
        """A class decorator that adds the class under each name of its `name: Literal[…]`."""
        for name in get_args(get_type_hints(choice)["name"]):
            self.add(name, choice)
        return choice

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        choices = {name: handler.generate_schema(choice) for name, choice in self.items()}
        return core_schema.tagged_union_schema(choices, discriminator="name")


def _place(entry: Any) -> tuple[Any, Any]:
    """Where a class or a function is defined."""
    return getattr(entry, "__module__", entry), getattr(entry, "__qualname__", entry)


def resolve(entry: Any) -> Any:
    """What "package.module:name" names, imported only now; anything else is returned as it is."""
    return pkgutil.resolve_name(entry) if isinstance(entry, str) else entry
