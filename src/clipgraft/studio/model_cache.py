"""Models in memory: those used last stay, within a bound; others are loaded again when asked for."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import psutil
import torch
from torch import nn


def _resident_bytes() -> int:
    return psutil.Process().memory_info().rss


class Loaded:
    """Models by name, least recently used first out. For one thread at a time.

    Args:
        max_bytes: Of all weights together; 0 = half of the machine's memory. The model that is asked for is
            kept even where it is larger by itself.
        resident_bytes: Gives this process's memory.
    """

    def __init__(self, max_bytes: int = 0, resident_bytes: Callable[[], int] = _resident_bytes):
        self._resident_bytes = resident_bytes
        self.max_bytes = max_bytes or psutil.virtual_memory().total // 2
        self._models: OrderedDict[str, tuple[Any, int, Hashable]] = OrderedDict()

    @property
    def num_bytes(self) -> int:
        """Of all weights that are loaded."""
        return sum(size for _, size, _ in list(self._models.values()))

    def names(self) -> list[str]:
        """What is loaded, least recently used first."""
        return list(self._models)

    def get(
        self,
        name: str,
        load: Callable[[], Any],
        modules: Callable[[Any], Iterable[nn.Module]],
        version: Hashable = None,
    ) -> Any:
        """Return a model, loaded where it is not.

        Args:
            name: Of the model.
            load: Loads it.
            modules: Gives what holds its weights.
            version: Of its files; a model of another version is forgotten first.
        """
        if name in self._models and self._models[name][2] != version:
            del self._models[name]
        if name not in self._models:
            before = self._resident_bytes()
            model = load()
            # An engine holds copies that no module tells of.
            grown = self._resident_bytes() - before
            self._models[name] = model, max(weight_bytes(modules(model)), grown), version
        self._models.move_to_end(name)
        while len(self._models) > 1 and self.num_bytes > self.max_bytes:
            self._models.popitem(last=False)
        return self._models[name][0]


def weight_bytes(modules: Iterable[nn.Module]) -> int:
    """Bytes of the weights of modules; what they share counts once."""
    storages: dict[int, int] = {}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            storage: torch.UntypedStorage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
