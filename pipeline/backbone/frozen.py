"""The frozen model, run with or without an injection."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import signature
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.backbone.by_length import by_length, pass_cost, prompts_by_length
from pipeline.backbone.carriers import carrier_of
from pipeline.backbone.checkpointing import checkpoint_layers
from pipeline.backbone.facts import BackboneFacts, behind_refusal
from pipeline.backbone.injection import NO_TOKEN, Injection, KeptTexts, KeysValues, split_prefix
from pipeline.backbone.layer_outputs import check_layers_are_seen, seen
from pipeline.backbone.likelihood import mean_log_probability
from pipeline.backbone.padding import real_first, take
from pipeline.backbone.pooling import pool
from pipeline.backbone.probe import probe
from pipeline.backbone.rope import follow_each_row
from pipeline.backbone.sites import Edits, Sites
from pipeline.backbone.trunk import Split, Trunk
from pipeline.distributed.zero import is_partitioned


class FrozenBackbone(nn.Module):
    """A base model whose parameters take no gradient, unless a method is attached to it, and whose dropout stays off.

    A text's states depend neither on its padding, on either side, nor on holes in its injection's mask. No weight is
    read outside its module's forward, so the parameters may be partitioned by ZeRO-3.
    """

    def __init__(self, model: PreTrainedModel, facts: BackboneFacts, *, gradient_checkpointing: bool = False):
        """`model`: a base model, or a language model, of which `likelihood` needs the output layer.

        Raises UserError where states of several layers are wanted of a family that does not show them.
        """
        super().__init__()
        self.output = model.requires_grad_(False).get_output_embeddings()
        self.model: Any = model.base_model
        self.facts = facts
        self.carrier = carrier_of(model.base_model, facts)
        if facts.joined:
            check_layers_are_seen(self.model)
        self._split: Split | None = None
        self._sites: Sites | None = None
        follow_each_row(model)
        taken = signature(self.model.forward).parameters
        self._takes_token_types = "token_type_ids" in taken and getattr(model.config, "type_vocab_size", 0) > 1
        self._takes_positions = "position_ids" in taken  # BLOOM reads them off the attention mask
        self._options = {"use_cache": False} if "use_cache" in taken else {}
        self._first_position = probe(model.config).first_position
        if gradient_checkpointing:
            checkpoint_layers(model)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Keeps the model itself in eval mode: no dropout, no layer drop."""
        super().train(mode)
        self.model.eval()
        return self

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        injection: Injection | None = None,
        token_type_ids: Tensor | None = None,
        keep: KeysValues | None = None,
        trunk: Trunk | None = None,
        edits: Edits | None = None,
        behind: Injection | None = None,
    ) -> Tensor:
        """Hidden states [B, T, M] of the text tokens: the last layer's, behind those of others that `facts` joins.

        `input_ids`, `attention_mask` (nonzero: real token) and `token_type_ids` are [B, T], padded on either side.
        States of padding are arbitrary. `injection` has B rows; it is cast to the backbone's dtype. `keep`, an empty
        list, gets the text's keys and values in each layer; only without an injection, and with padding on the right.
        With `trunk`, made of the same texts, the layers from `trunk.first_layer` on read on from there, and the
        injection is one into them: its prefix has the numbers of these layers alone. `edits` act on this reading alone,
        behind a trunk only before these layers. `behind`, a prompt of S tokens, is read right behind the texts, where
        nothing else is injected: then the states are [B, T + S, M].
        """
        assert injection is None or len(injection.mask) == len(input_ids), "an injection has one row per text"
        assert trunk is None or edits is None or edits.first_layer >= trunk.first_layer, "a trunk is not edited"
        mask = attention_mask.bool()
        tokens = {"input_ids": input_ids}
        if self._takes_token_types and token_type_ids is not None:
            tokens["token_type_ids"] = token_type_ids
        if edits is not None and edits.embeddings is not None:
            tokens["inputs_embeds"] = self._edited_embeddings(tokens.pop("input_ids"), mask, edits.embeddings)
        if behind is not None:
            embeddings = self.model.get_input_embeddings()(tokens.pop("input_ids"))
            tokens["inputs_embeds"] = torch.cat([embeddings, behind.content.to(embeddings.dtype)], dim=1)
            mask = torch.cat([mask, behind.mask], dim=1)
        length = mask.shape[1]
        if injection is not None and injection.prompt is not None:
            # Behind a trunk the prompt enters later: at the embeddings it only keeps its place.
            prompt = injection.prompt if trunk is None else injection.prompt.detach()
            tokens, mask = self._behind_prompt(tokens, mask, prompt, injection.mask)
        order = real_first(mask)
        tokens = {name: take(value, order) for name, value in tokens.items()}
        mask = mask.gather(1, order)
        first_layer = 0 if trunk is None else trunk.first_layer
        with self._reading_on(trunk, injection, order), self._edited(edits, mask), self._seeing_lower() as lower:
            last = self._run(tokens, mask, injection, keep, first_layer)
        return take(_side_by_side(lower, last), order.argsort(dim=1)[:, -length:])

    def trunk(
        self, input_ids: Tensor, attention_mask: Tensor, first_layer: int, token_type_ids: Tensor | None = None
    ) -> Trunk:
        """The texts as the layers below `first_layer` read them, without a gradient. Arguments as for `forward`."""
        with torch.no_grad(), self.split.lower(first_layer) as found:
            self(input_ids, attention_mask, token_type_ids=token_type_ids)
        return Trunk(first_layer, take(found[0], real_first(attention_mask.bool()).argsort(dim=1)))

    def keep(self, input_ids: Tensor, attention_mask: Tensor, beginning: Injection | None = None) -> KeptTexts:
        """Reads texts, without a gradient, so that more can be read behind them. Arguments as for `forward`.

        `beginning`: of B rows, the prompt with which all that is read behind a text begins. It is read here, once.
        """
        layers: KeysValues = []
        with torch.no_grad():
            hidden = self(input_ids, attention_mask, keep=layers, behind=beginning)
        mask = attention_mask.bool()
        if beginning is not None:
            mask = torch.cat([mask, beginning.mask], dim=1)
        order = real_first(mask)
        return KeptTexts(take(hidden, order), mask.gather(1, order), layers, mask.shape[1] - input_ids.shape[1])

    def behind(self, texts: KeptTexts, injection: Injection, *, in_one: bool = False) -> Tensor:
        """Hidden states [B * C, P, M] of prompts that are read right behind B texts, C in a row behind each.

        Those of tokens that the injection's mask leaves out are arbitrary. The same as to read text and prompt in one.
        What the prompts begin with is not read again where the texts were kept with it. Prompts of like length have a
        pass of their own where that saves more than it costs, unless all are to be read `in_one`.
        """

        def read(part: Injection, _rows: Tensor) -> Tensor:
            return self._behind({"inputs_embeds": part.content.to(texts.hidden.dtype)}, part.mask, texts)

        spare = sys.maxsize if in_one else self.pass_cost
        hidden = prompts_by_length(read, injection.after(texts.begun), len(texts.mask), spare)
        begun = texts.beginning.repeat_interleave(len(hidden) // len(texts.mask), 0)
        return torch.cat([begun, hidden], dim=1)

    @property
    def pass_cost(self) -> int:
        """Tokens of padding that may be read to spare a pass: all under ZeRO-3, where all ranks make as many passes."""
        weight = next(self.model.parameters())
        return sys.maxsize if is_partitioned(weight) else pass_cost(weight.device)

    def _behind(self, tokens: dict[str, Tensor], mask: Tensor, texts: KeptTexts) -> Tensor:
        """Hidden states [B * C, P, M] of right-padded tokens with the mask [B * C, P], behind B texts."""
        assert self.carrier is not None
        before = texts.mask.repeat_interleave(len(mask) // len(texts.mask), 0)
        inputs = self._inputs(tokens, torch.cat([before, mask], dim=1))
        with self._seeing_lower() as lower:
            last = self.carrier.run(inputs, mask, texts.layers, before)
        return _side_by_side(lower, last)

    @property
    def keeps_texts(self) -> bool:
        """Whether what is read behind kept texts is read just as text and words in one, however long they are."""
        return behind_refusal(self.facts) is None and self.facts.sliding_window is None

    @property
    def split(self) -> Split:
        """Made when it is first asked for, so that a backbone without a trunk is the model as it is.

        Raises UserError for families that cannot be split.
        """
        if self._split is None:
            self._split = Split(self.model, gives_tuples=probe(self.model.config).gives_tuples)
        return self._split

    @property
    def sites(self) -> Sites:
        """Made when it is first asked for. Raises UserError for families whose layers cannot be edited."""
        if self._sites is None:
            self._sites = Sites(self.model, self.facts)
        return self._sites

    def _edited(self, edits: Edits | None, mask: Tensor) -> AbstractContextManager[None]:
        return nullcontext() if edits is None or not edits.before else self.sites.edited(edits, mask)

    def _edited_embeddings(self, input_ids: Tensor, mask: Tensor, edit: nn.Module) -> Tensor:
        embeddings: Tensor = self.model.get_input_embeddings()(input_ids)
        return edit(embeddings, mask).to(embeddings.dtype)

    def _reading_on(
        self, trunk: Trunk | None, injection: Injection | None, order: Tensor
    ) -> AbstractContextManager[None]:
        if trunk is None:
            return nullcontext()
        states = trunk.states
        if injection is not None and injection.prompt is not None:
            states = torch.cat([injection.prompt.to(states.dtype), states], dim=1)
        return self.split.upper(trunk.first_layer, take(states, order))

    @contextmanager
    def _seeing_lower(self) -> Iterator[list[Tensor]]:
        """A run of the model inside fills the list with the states [B, S, H] that are joined with its last."""
        lower: list[Tensor] = []
        with seen(self.model, self.facts.joined[:-1], lower.append) if self.facts.joined else nullcontext():
            yield lower

    def likelihood(
        self, input_ids: Tensor, attention_mask: Tensor, continuation: Tensor, kept: KeptTexts | None = None
    ) -> Tensor:
        """Mean log-probability per token of what is read right behind each text, [B * C] float32.

        `input_ids` and `attention_mask` are those of the texts, [B, T]; `continuation` [B * C, Q], C in a row behind
        each, is padded with NO_TOKEN. `kept`: the same texts, read before, where the backbone `keeps_texts`; then only
        the continuation is read.
        """
        assert self.output is not None, "the backbone was loaded without its output layer"
        copies, cap = len(continuation) // len(input_ids), getattr(self.model.config, "final_logit_softcapping", None)
        ends = None if kept is None else pool(kept.hidden, kept.text_mask, "last")

        def read(rows: Tensor, width: int) -> Tensor:
            words, texts = continuation[rows, :width], rows // copies
            if kept is None or ends is None:
                last, behind = self._words_with_texts(words, input_ids[texts], attention_mask[texts].bool())
            else:
                last = ends[texts]
                behind = self._behind({"input_ids": words.clamp(min=0)}, words != NO_TOKEN, kept)
            # What predicts each token is the state of the one before it.
            before = torch.cat([last.unsqueeze(1), behind[:, :-1]], dim=1)
            return mean_log_probability(self.output, cap, before, words)

        return by_length(read, continuation != NO_TOKEN, len(input_ids), self.pass_cost)

    def _words_with_texts(self, words: Tensor, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The states of the texts' last tokens [R, M], and those of words right behind them [R, Q, M], read in one."""
        tokens = torch.cat([input_ids, words.clamp(min=0)], dim=1)
        text, behind = self(tokens, torch.cat([mask, words != NO_TOKEN], dim=1)).tensor_split([mask.shape[1]], dim=1)
        return pool(text, mask, "last"), behind

    def _behind_prompt(
        self, tokens: dict[str, Tensor], mask: Tensor, prompt: Tensor, prompt_mask: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Prompt and text as one sequence of embeddings and its mask [B, P + T]."""
        embeddings = tokens.get("inputs_embeds")
        if embeddings is None:
            embeddings = self.model.get_input_embeddings()(tokens["input_ids"])
        joined = {"inputs_embeds": torch.cat([prompt.to(embeddings.dtype), embeddings], dim=1)}
        if "token_type_ids" in tokens:
            joined["token_type_ids"] = nn.functional.pad(tokens["token_type_ids"], (prompt.shape[1], 0))
        return joined, torch.cat([prompt_mask, mask], dim=1)

    def _run(
        self,
        tokens: dict[str, Tensor],
        mask: Tensor,
        injection: Injection | None,
        keep: KeysValues | None,
        first_layer: int,
    ) -> Tensor:
        """Calls the model on a right-padded sequence with the mask [B, S] -> last hidden states [B, S, H]."""
        prefix = None if injection is None else injection.prefix
        seen = mask if injection is None or prefix is None else torch.cat([injection.mask, mask], dim=1)
        inputs = self._inputs(tokens, seen)
        if keep is None and prefix is None:
            return self.model(attention_mask=mask.long(), **inputs).last_hidden_state
        assert self.carrier is not None, f"{self.facts.family} takes no prefix"
        if keep is not None:
            return self.carrier.keep(inputs, mask, keep)
        assert prefix is not None and injection is not None
        layers = self.facts.prefix_layers[first_layer:]
        return self.carrier.run(inputs, mask, split_prefix(prefix, layers), injection.mask)

    def _inputs(self, tokens: dict[str, Tensor], seen: Tensor) -> dict[str, Any]:
        """The model's arguments but for the mask. `seen`: mask of all that the tokens, which end it, can see."""
        inputs: dict[str, Any] = {**tokens, **self._options}
        if self._takes_positions:
            [length] = {token.shape[1] for token in tokens.values()}
            positions = (seen.cumsum(dim=1) - 1).clamp(min=0)  # clamp: a row without any token
            inputs["position_ids"] = positions[:, -length:] + self._first_position
        return inputs

    def float_buffers(self) -> dict[str, Tensor]:
        """Copies of all floating-point buffers by name (rotary frequencies, scales), as they are before an engine casts
        the whole module to bf16, which would round them."""
        return {name: buffer.clone() for name, buffer in self.model.named_buffers() if buffer.is_floating_point()}

    def restore_buffers(self, saved: dict[str, Tensor]) -> None:
        """Puts `float_buffers()` back with their own dtype, on the device where each buffer now is."""
        for name, value in saved.items():
            owner, _, leaf = name.rpartition(".")
            setattr(self.model.get_submodule(owner), leaf, value.to(self.model.get_buffer(name).device))


def _side_by_side(lower: list[Tensor], last: Tensor) -> Tensor:
    """[B, S, M] of states [B, S, H]"""
    return torch.cat([*lower, last], dim=-1) if lower else last
