"""The adapters that a server has on its one backbone, by name; and the label sets that were asked of them."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from pipeline.adapter.directory import Adapter, adapter_folder, load_adapter
from pipeline.backbone.config import BackboneConfig
from pipeline.core.errors import UserError
from pipeline.core.paths import is_plain_name
from pipeline.data.config import OneOrSeveral, weighted
from pipeline.distributed.ranks import Ranks
from pipeline.engine.backbone import Backbone, backbone_of
from pipeline.engine.loaded_adapter import LoadedAdapter, device_named, frozen_backbone

Key: TypeAlias = tuple[int, tuple[str, ...], tuple[tuple[str, tuple[tuple[str, float], ...]], ...]]
"""An adapter, the names of labels, and hypotheses."""
SAME = ("dtype", "quantization", "int8_threshold", "attention", "layers")
"""Keys of `backbone` in which all adapters of a server agree."""


@dataclass(frozen=True)
class Choices:
    """What is said of all adapters alike."""

    device: str | None = None
    """None: cuda where there is one, else cpu."""
    backbone: str | None = None
    """Where the backbone is, if it has moved."""
    calibrated: bool = False
    """Probabilities with the temperature that evaluate fitted."""
    trust_remote_code: bool = False
    """Run the Python code that ships with the backbone."""


class SharedBackbone:
    """One backbone in memory, and what an adapter must agree with to be put on it."""

    def __init__(self, first: Adapter, choices: Choices, *, output_layer: bool) -> None:
        """Loads the backbone of the first adapter. `output_layer`: one of the others scores hypotheses by likelihood.

        Raises UserError as `LoadedAdapter.load` does.
        """
        self._choices = choices
        self.device = device_named(choices.device)
        self.config = self._config(first)
        self._known: dict[tuple[bool, bool], Backbone] = {}
        known = self._read_as(first)
        self._weights = known.opened(Ranks.alone()).fingerprint
        self._frozen = frozen_backbone(first, known, self.device, output_layer=output_layer)
        self._changed_by: str | None = None

    def load(self, name: str, adapter: Adapter, others: Sequence[str]) -> LoadedAdapter:
        """Puts an adapter on it, beside these others. UserError, with the reason, for one that cannot share it."""
        self._check_inside(adapter, others)
        self._check_reading(adapter)
        tokenizer = self._read_as(adapter).tokenizer
        if adapter.is_inside:
            self._changed_by = name
        return LoadedAdapter.on(self._frozen, tokenizer, adapter, self.device)

    def _check_inside(self, adapter: Adapter, others: Sequence[str]) -> None:
        """Does one of them work inside the backbone, with which the others read?"""
        if self._changed_by is not None:
            raise UserError(
                f"it cannot be served beside '{self._changed_by}', which has changed the backbone's own layers: start "
                "a server for each"
            )
        if adapter.is_inside and others:
            raise UserError(
                f"{adapter.config.method.name} changes the backbone's own layers, with which '{others[0]}' reads: "
                "start a server for it alone"
            )

    def _check_reading(self, adapter: Adapter) -> None:
        """Would it read what the backbone in memory reads?"""
        theirs = self._config(adapter)
        for key in SAME:
            if getattr(theirs, key) != getattr(self.config, key):
                raise UserError(
                    f"it was made with backbone.{key}={getattr(theirs, key)}, this server's backbone has "
                    f"{getattr(self.config, key)}: start a server for it"
                )
        known = self._read_as(adapter)
        adapter.check_backbone(self._weights, known.tokenizer_fingerprint)
        adapter.texts(known.tokenizer).check(known.facts.vocab_size)
        if adapter.config.method.reads_hypotheses and known.facts.is_decoder and self._frozen.output is None:
            raise UserError(
                f"{adapter.config.method.name} scores labels by the backbone's output layer, which this server has not "
                "loaded: name the adapter when the server is started"
            )

    def _config(self, adapter: Adapter) -> BackboneConfig:
        return adapter.config.backbone.trusted(self._choices.trust_remote_code).moved(self._choices.backbone)

    def _read_as(self, adapter: Adapter) -> Backbone:
        """The backbone's files and tokenizer, as this adapter reads texts."""
        data = adapter.config.data
        key = data.special_tokens, data.chat
        if key not in self._known:
            self._known[key] = backbone_of(self.config, data)
        return self._known[key]


class Adapters:
    """The served adapters by name. What touches the backbone is called by the one thread that runs it."""

    def __init__(self, paths: Mapping[str, Path], choices: Choices, *, label_bytes: int = 512 * 2**20) -> None:
        """Loads the adapter directories, or run directories, and the backbone that they share.

        `label_bytes`: of states of labels that are not those of training, which are kept ready. Raises UserError for
        the first adapter that is damaged, or cannot share the backbone with those before it.
        """
        found = {}
        for name, path in paths.items():
            with _named(name):
                found[name] = self.read(path, choices.calibrated)
        needs_output = any(adapter.config.method.reads_hypotheses for adapter in found.values())
        first = next(iter(found.values()))
        self.calibrated = choices.calibrated
        with _named(next(iter(found))):
            self.shared = SharedBackbone(first, choices, output_layer=needs_output)
        self.tokenizing = threading.Lock()
        """Held by whoever uses a tokenizer: they are not made for several threads."""
        self._lock = threading.Lock()
        self._label_bytes = label_bytes
        self._sets: OrderedDict[Key, LoadedAdapter] = OrderedDict()
        self._loaded: dict[str, LoadedAdapter] = {}
        for name, adapter in found.items():
            self.put(name, adapter)

    @staticmethod
    def read(path: str | Path, calibrated: bool) -> Adapter:
        """An adapter directory, or a run directory's. Touches no backbone. UserError as `load_adapter`."""
        return load_adapter(adapter_folder(path), calibrated=calibrated)

    def put(self, name: str, adapter: Adapter) -> LoadedAdapter:
        """Adds it, or takes it in the place of the one of that name. UserError where it cannot share the backbone."""
        check_name(name)
        with self.tokenizing, _named(name):
            loaded = self.shared.load(name, adapter, [other for other in self._loaded if other != name])
        with self._lock:
            # In one step: who asks meanwhile, which takes no lock, finds one of the two.
            gone, self._loaded[name] = self._loaded.get(name), loaded
            self._forget_sets(gone)
        return loaded

    def remove(self, name: str) -> bool:
        """What is in a batch is still answered. False: there is none of that name."""
        with self._lock:
            gone = self._loaded.pop(name, None)
            self._forget_sets(gone)
        return gone is not None

    def _forget_sets(self, gone: LoadedAdapter | None) -> None:
        for key in [key for key in self._sets if gone is not None and key[0] == id(gone)]:
            del self._sets[key]

    @property
    def names(self) -> list[str]:
        """In the order in which they came."""
        return list(self._loaded)

    def __getitem__(self, name: str) -> LoadedAdapter:
        """KeyError where there is none."""
        return self._loaded[name]

    def known(
        self, loaded: LoadedAdapter, names: Sequence[str], texts: Mapping[str, OneOrSeveral]
    ) -> LoadedAdapter | None:
        """The adapter among these labels, where that was asked for lately."""
        key = _key(loaded, names, texts)
        with self._lock:
            found = self._sets.get(key)
            if found is not None:
                self._sets.move_to_end(key)
        return found

    def among(self, loaded: LoadedAdapter, names: Sequence[str], texts: Mapping[str, OneOrSeveral]) -> LoadedAdapter:
        """The same; the backbone reads the hypotheses, if need be. UserError as `LoadedAdapter.with_labels`."""
        found = self.known(loaded, names, texts)
        if found is not None:
            return found
        with self.tokenizing:
            found = loaded.with_labels(names, texts)
        with self._lock:
            if any(loaded is served for served in self._loaded.values()):
                self._sets[_key(loaded, names, texts)] = found
                while sum(map(_size, self._sets.values())) > self._label_bytes:
                    self._sets.popitem(last=False)
        return found


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Says in a UserError which adapter it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"adapter {name!r}: {error}") from error


def _key(loaded: LoadedAdapter, names: Sequence[str], texts: Mapping[str, OneOrSeveral]) -> Key:
    return id(loaded), tuple(names), tuple((name, tuple(weighted(own).items())) for name, own in texts.items())


def _size(loaded: LoadedAdapter) -> int:
    """Bytes of its labels' states."""
    model = loaded.model
    kept = (model.label_states, model.label_mask, model.label_start, model.continuations)
    return sum(tensor.nbytes for tensor in kept if tensor is not None)


def check_name(name: str) -> None:
    """UserError for what cannot be an adapter's name."""
    if not is_plain_name(name):
        raise UserError(f"{name!r:.120} cannot be an adapter's name: take letters, digits, dots, hyphens, underscores")
