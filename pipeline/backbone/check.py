"""Whether a loaded backbone is read as transformers reads it, alone and with an injection: shown on a few tokens.

Families differ in what they make of positions, caches and embeddings. All but the tested ones are accepted by this
check alone. It asks the loaded model, sharded or not, for the same states twice: in this program's way, and in another.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from pipeline.backbone.as_injection import AsInjection
from pipeline.backbone.carriers import Carrier
from pipeline.backbone.facts import BackboneFacts, Form, prefix_refusal
from pipeline.backbone.injection import Injection, KeysValues
from pipeline.backbone.probe import cache_argument, probe
from pipeline.backbone.verdict import PASSED, Verdict
from pipeline.core.errors import UserError, first_line

ROWS, TOKENS, INJECTED_TOKENS, FIRST_TOKEN = 2, 4, 2, 11
ROUNDINGS = 8
"""Times the rounding error of the largest state, that two ways to the same states may differ."""


def check_reading(reader: nn.Module, inside: AsInjection) -> Verdict:
    """Reads two short texts in several ways. Collective where the backbone is sharded.

    `reader`: `inside`, or an engine around it. Raises UserError where texts alone are read otherwise than they should.
    """
    check = _Check(reader, inside)
    with torch.no_grad():
        check.texts_alone()
        return Verdict(check.prompt(), check.prefix())


class _Check:
    def __init__(self, reader: nn.Module, inside: AsInjection) -> None:
        self.reader, self.inside, self.backbone = reader, inside, inside.backbone
        self.facts: BackboneFacts = inside.backbone.facts
        device = next(inside.parameters()).device
        # The texts differ in their last token alone, which only a bidirectional model sees from the first.
        self.ids = torch.arange(FIRST_TOKEN, FIRST_TOKEN + TOKENS, device=device).repeat(ROWS, 1)
        self.ids[1, -1] += 1
        self.mask = torch.ones(ROWS, INJECTED_TOKENS, dtype=torch.bool, device=device)
        self.alone = self.read(self.ids)

    def read(self, ids: Tensor, injection: Injection | None = None) -> Tensor:
        hidden: Tensor = self.reader(ids, torch.ones_like(ids), injection)[0]
        return hidden

    def texts_alone(self) -> None:
        """Positions, masks and the direction of attention."""
        with self._carried_by(_Nothing(self.backbone.model)):
            expected = self.read(self.ids, self._some_prefix())
        if not _same(self.alone, expected):
            raise UserError(f"{self.facts.family} is not read as transformers reads it: choose another backbone")
        if torch.equal(self.alone[0, 0], self.alone[1, 0]) != self.facts.is_decoder:
            taken = "causal" if self.facts.is_decoder else "bidirectional"
            raise UserError(f"{self.facts.family} was taken for {taken}, which it is not: choose another backbone")

    def prompt(self) -> str:
        """The text's own first tokens are given as a prompt."""
        form, self.inside.form = self.inside.form, Form("prompt")
        try:
            embeddings = self.reader(self.ids, torch.ones_like(self.ids))[1]
            injection = Injection(self.mask, prompt=embeddings[:, :INJECTED_TOKENS])
            found = self.read(self.ids[:, INJECTED_TOKENS:], injection)
            self.read(self.ids, Injection(self.mask, prompt=1.5 * embeddings[:, :INJECTED_TOKENS]))  # of no token
        except (RuntimeError, ValueError, TypeError) as error:
            return f"does not take embeddings in the place of tokens ({first_line(error)})"
        finally:
            self.inside.form = form
        if _same(found, self.alone[:, INJECTED_TOKENS:]):
            return PASSED
        return "reads embeddings otherwise than the tokens they stand for"

    def prefix(self) -> str:
        """A random prefix is given by the carrier, and in a cache that was filled with it."""
        if (reason := prefix_refusal(self.facts)) is not None:
            return reason
        injection = self._some_prefix()
        found = self.read(self.ids, injection)
        if _same(found, self.alone):
            return "reads a prefix, but nothing changes"
        if self._has_cache():
            with self._carried_by(_FilledCache(self.backbone.model)):
                expected = self.read(self.ids, injection)
            if not _same(found, expected):
                return "reads a prefix otherwise than a filled cache"
        return PASSED

    def _some_prefix(self) -> Injection:
        generator = torch.Generator().manual_seed(0)
        prefix = torch.randn(ROWS, INJECTED_TOKENS, self.facts.prefix_width(), generator=generator)
        return Injection(self.mask, prefix=prefix.to(self.ids.device))

    def _has_cache(self) -> bool:
        """One that holds what the carrier carries, and whose window leaves all of it to be seen."""
        held = [shape for shape in probe(self.backbone.model.config).cached if shape is not None]
        window = self.facts.sliding_window
        is_seen = window is None or window >= INJECTED_TOKENS + TOKENS
        return is_seen and held == [shape for shape in self.facts.prefix_layers if shape is not None]

    @contextmanager
    def _carried_by(self, carrier: Carrier) -> Iterator[None]:
        own, self.backbone.carrier = self.backbone.carrier, carrier
        try:
            yield
        finally:
            self.backbone.carrier = own


class _Nothing:
    """Carries nothing: the model reads the text alone, and numbers its positions itself."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def run(self, inputs: dict[str, Any], mask: Tensor, prefix: KeysValues, prefix_mask: Tensor) -> Tensor:
        # Without a cache, as it is read here: one that has room for recurrences' states alone raises.
        options = {name: inputs[name] for name in ("use_cache",) if name in inputs}
        return self._model(input_ids=inputs["input_ids"], attention_mask=mask.long(), **options).last_hidden_state

    def keep(self, inputs: dict[str, Any], mask: Tensor, kept: KeysValues) -> Tensor:
        raise NotImplementedError


class _FilledCache(_Nothing):
    """The model's own kind of cache, filled as if tokens had been read."""

    def run(self, inputs: dict[str, Any], mask: Tensor, prefix: KeysValues, prefix_mask: Tensor) -> Tensor:
        config, argument = self._model.config, cache_argument(self._model) or ""
        cache = DynamicCache(config=config)
        layers = [index for index, shape in enumerate(probe(config).cached) if shape is not None]
        for layer, (keys, values) in zip(layers, prefix, strict=True):
            dtype = self._model.dtype
            cache.update(keys.to(dtype), values.to(dtype), layer)
        seen = torch.cat([prefix_mask, mask], dim=1).long()
        return self._model(**inputs, **{argument: cache}, attention_mask=seen).last_hidden_state


def _same(found: Tensor, expected: Tensor) -> bool:
    """Equal to the last bits: kernels need not add in one order."""
    bound = ROUNDINGS * torch.finfo(expected.dtype).eps * expected.abs().max()
    return bool((found - expected).abs().max() <= bound)
