"""One frozen base model in memory, every role an adapter: the only place that switches adapters.

PEFT's own switches change `requires_grad` behind the caller's back: leaving `disable_adapter()`
freezes what was trainable or thaws what was frozen, `set_adapter()` thaws. Here each parameter's
flag is decided once, when its adapter is attached, and put back after every switch.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    TaskType,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.logprobs import TokenLogps, token_logps
from rlhf_recipes.models.adapters import Adapter, read_adapter
from rlhf_recipes.models.dropout import turn_off_dropout
from rlhf_recipes.models.logits import logits_of
from rlhf_recipes.models.lora import HEAD_NAMES, check_lora
from rlhf_recipes.models.merging import merged
from rlhf_recipes.prefix_sharing.forward import packed_pass, takes_packed
from rlhf_recipes.prefix_sharing.packing import packing_of
from rlhf_recipes.prefix_sharing.shared_layers import lowest_adapted_layer, only_layers, trunk_input
from rlhf_recipes.prompts import position_ids


class Roles(nn.Module):
    """A frozen causal language model with named LoRA adapters, some with a scalar head.

    A role is an adapter's name; None is the base with all adapters off. Dropout is off in all
    roles: PPO's ratio compares two passes over the same tokens.

    With gradient checkpointing the backward pass computes activations again with whatever adapter
    is active then: hold `use(role)` over forward *and* backward.

    Args:
        prefix_sharing: Whether what rows of a batch have in common is computed once, where the
            architecture allows it.
    """

    def __init__(self, base: PreTrainedModel, *, prefix_sharing: bool = True) -> None:
        super().__init__()
        self.base = base
        self.heads = nn.ModuleDict()
        self.active: str | None = None
        self.trunk_depth = 0
        self._peft: list[PeftModel] = []  # in a list: not a second path to the same parameters
        self._trainable: dict[nn.Parameter, bool] = {}
        self._fix_flags(trainable=False)
        # By the names before any adapter; under two where an embedding is the head as well.
        self._shared = dict(base.named_parameters(remove_duplicate=False))
        self._checksums = {weight: _checksum(weight) for weight in base.parameters()}
        turn_off_dropout(base)
        self.packs = prefix_sharing and takes_packed(base)

    def attach(self, role: str, config: LoraConfig, *, trainable: bool) -> None:
        """Add a fresh adapter: B = 0, so the role starts as the base itself."""
        check_lora(config.to_dict(), f"What `{role}` is to be")
        config.lora_dropout = 0.0
        # PEFT would read it from the model: the name the user gave.
        config.base_model_name_or_path = self.base.name_or_path
        if self._peft:
            self._peft[0].add_adapter(role, config)
        else:
            self._peft.append(PeftModel(self.base, config, adapter_name=role))
        self._fix_flags(trainable)
        self._activate(self.active)
        self.trunk_depth = lowest_adapted_layer(self.base)
        self._check_base_unchanged(role)

    def attach_saved(self, role: str, source: str | Path | Adapter, *, trainable: bool) -> None:
        """Add an adapter, or that of a run folder, with its scalar head where it has one."""
        adapter = read_adapter(source)
        try:
            self.attach(role, copy.deepcopy(adapter.config), trainable=trainable)
        except ValueError as error:  # PEFT names the layers it did not find
            raise RecipeError(self._does_not_fit(adapter, str(error))) from error
        if adapter.head:
            head = adapter.head
            self.attach_head(role, head["weight"], head.get("bias"), trainable=trainable)
        self.load_role(role, adapter)

    def load_role(self, role: str, source: str | Path | Adapter) -> None:
        """Replace the weights of an attached role by those of another adapter.

        Only LoRA weights are handed to PEFT, which would write any other into the base.
        """
        adapter = read_adapter(source)
        self._check_copies(adapter)
        try:
            result: Any = set_peft_model_state_dict(
                self._peft[0], dict(adapter.weights), adapter_name=role
            )
        except (RuntimeError, KeyError) as error:  # torch lists the weights of another size
            raise RecipeError(self._does_not_fit(adapter, str(error))) from error
        unset = [name for name in result.missing_keys if role in name.split(".")]
        for what, names in (
            ("weights that the base has no place for", result.unexpected_keys),
            ("no weights for layers that its configuration adapts", unset),
        ):
            if names:
                raise RecipeError(self._does_not_fit(adapter, f"it has {what}, such as {names[0]}"))
        if adapter.head:
            self.heads[role].load_state_dict(dict(adapter.head))
        self._check_base_unchanged(role)

    def _check_copies(self, adapter: Adapter) -> None:
        """Base weights that PEFT saved with an adapter must be those of this base."""
        for name, tensor in adapter.copies.items():
            plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
            weight = self._shared.get(plain)
            if weight is None or not torch.equal(weight.detach(), tensor.to(weight)):
                raise RecipeError(
                    f"The adapter in {adapter.folder} has another `{name}` than the base "
                    f"`{self.base.name_or_path}`, which all roles share: taken over, it would "
                    "change the base. Train the adapter without changing that layer or the "
                    "vocabulary, or merge it into a copy of the base with PEFT's "
                    "`merge_and_unload` and use that folder as `model_name_or_path`."
                )

    def _check_base_unchanged(self, role: str) -> None:
        """The shared base is the same, bit for bit, as before any adapter."""
        for name, weight in self._shared.items():
            if not torch.equal(_checksum(weight), self._checksums[weight].to(weight.device)):
                raise RecipeError(
                    f"Attaching `{role}` changed the shared base `{self.base.name_or_path}` "
                    f"(`{name}`), so that no role's outputs could be believed. Train that adapter "
                    "as plain LoRA."
                )

    def _does_not_fit(self, adapter: Adapter, reason: str) -> str:
        return (
            f"The adapter in {adapter.folder} does not fit `{self.base.name_or_path}`: {reason}. "
            f"It was trained on {adapter.base}: an adapter fits its own base only."
        )

    def attach_head(
        self, role: str, weight: Tensor, bias: Tensor | None, *, trainable: bool
    ) -> None:
        """Give a role the scalar head score = weight · h + bias, in float32."""
        head = nn.Linear(weight.shape[1], 1, bias=bias is not None, device=self.base.device)
        head.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
        self.heads[role] = head.requires_grad_(trainable)

    def adapter_config(self, role: str) -> LoraConfig:
        """A copy of a role's LoRA configuration."""
        return copy.deepcopy(self._peft[0].peft_config[role])  # type: ignore[return-value]

    def head(self, role: str) -> nn.Linear:
        """The scalar head of a role that has one."""
        head = self.heads[role]
        assert isinstance(head, nn.Linear)
        return head

    def _fix_flags(self, trainable: bool) -> None:
        for parameter in self.base.parameters():
            self._trainable.setdefault(parameter, trainable)
            parameter.requires_grad_(self._trainable[parameter])

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """The Trainer calls this where a recipe has `activation_checkpointing: true`."""
        self.base.activation_checkpointing_enable(**kwargs)

    @contextmanager
    def use(self, role: str | None) -> Iterator[None]:
        """Make a role the active one; what was active and all `requires_grad` come back."""
        if role == self.active:
            yield
            return
        before = self.active
        self._activate(role)
        try:
            yield
        finally:
            self._activate(before)

    def _activate(self, role: str | None) -> None:
        self.active = role
        if not self._peft:
            assert role is None, f"no adapter `{role}`"
            return
        tuner: Any = self._peft[0].base_model
        if role is None:
            tuner.disable_adapter_layers()
        else:
            tuner.enable_adapter_layers()
            self._peft[0].set_adapter(role, inference_mode=True)
        for parameter, trainable in self._trainable.items():
            parameter.requires_grad_(trainable)

    @contextmanager
    def merged(self, role: str | None) -> Iterator[PreTrainedModel]:
        """The base as a role, its adapter added into the weights where that is possible."""
        with self.use(role):
            if role is None:
                yield self.base
            else:
                with merged(self.base, role):
                    yield self.base

    def forward(
        self,
        role: str | None,
        input_ids: Tensor,
        mask: Tensor,
        completion_length: int,
        temperature: float = 1.0,
        trunk: Tensor | None = None,
        *,
        entropy_grad: bool = False,
    ) -> TokenLogps | Tensor:
        """Values of a role with a head, log-probabilities of one without: completion tokens only.

        A training pass goes through here, so that DistributedDataParallel sees it.

        Args:
            trunk: What `trunk` gave for these rows, where it did.
            entropy_grad: Whether the entropy has a gradient, which takes memory.
        """
        if role is not None and role in self.heads:
            # V(s_t) is read where token t is about to be chosen: one position before it.
            return self.scores(role, input_ids, mask, trunk)[:, -completion_length - 1 : -1]
        real = mask[:, -completion_length:]
        with self.use(role):  # an adapter may reach the head
            states = self.completion_states(role, input_ids, mask, completion_length, trunk)
            # The head is the widest layer by far: it runs on real tokens only.
            logits = logits_of(self.base, states)
        ids = input_ids[:, -completion_length:][real]
        found = token_logps(logits, ids, temperature, entropy_grad=entropy_grad)
        return TokenLogps(*(f.new_zeros(real.shape).masked_scatter(real, f) for f in found))

    def completion_states(
        self,
        role: str | None,
        input_ids: Tensor,
        mask: Tensor,
        completion_length: int,
        trunk: Tensor | None = None,
    ) -> Tensor:
        """What the language-model head draws each real completion token from, row by row.

        Shape (tokens, width): the last hidden states one position before each token.
        """
        hidden = self.hidden(role, input_ids, mask, trunk)[:, -completion_length - 1 : -1]
        return hidden[mask[:, -completion_length:]]

    def scores(
        self, role: str, input_ids: Tensor, mask: Tensor, trunk: Tensor | None = None
    ) -> Tensor:
        """The scalar head's output at every position, shape (batch, length), float32."""
        hidden = self.hidden(role, input_ids, mask, trunk)
        return self.head(role)(hidden.float()).squeeze(-1)  # type: ignore[no-any-return]

    def trunk(self, input_ids: Tensor, mask: Tensor) -> Tensor | None:
        """Hidden states below the lowest adapted layer, the same for all roles; no gradient.

        Shape (batch, length, width). None where adapters reach the first layer, or the architecture
        cannot be split.
        """
        if self.trunk_depth == 0:
            return None
        with torch.no_grad(), only_layers(self.base, slice(0, self.trunk_depth)):
            return self._decode(input_ids, mask)

    def hidden(
        self, role: str | None, input_ids: Tensor, mask: Tensor, trunk: Tensor | None = None
    ) -> Tensor:
        """Last hidden states, after the final norm, shape (batch, length, width).

        What rows have in common is computed once; see `packing.py`.
        """
        with self.use(role):
            if trunk is None:
                return self._decode(input_ids, mask)
            with only_layers(self.base, slice(self.trunk_depth, None)):
                return self._decode(input_ids, mask, trunk)

    def _decode(self, input_ids: Tensor, mask: Tensor, trunk: Tensor | None = None) -> Tensor:
        decoder = self.base.base_model
        given = {"input_ids": input_ids}
        if trunk is not None:
            given = {"inputs_embeds": trunk_input(self.base, trunk)}
        packing = packing_of(input_ids, mask) if self.packs else None
        if packing is not None:
            packed = {name: packing.pack(tensor) for name, tensor in given.items()}
            return packing.unpack(packed_pass(decoder, packing, **packed).last_hidden_state)
        output = decoder(
            attention_mask=mask.long(), position_ids=position_ids(mask), use_cache=False, **given
        )
        return output.last_hidden_state  # type: ignore[no-any-return]

    def save_role(self, role: str, folder: str | Path) -> None:
        """Write a role as a PEFT adapter folder that PEFT itself can load, head included."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        peft = self._peft[0]
        weights = get_peft_model_state_dict(peft, adapter_name=role, save_embedding_layers=False)
        config = self.adapter_config(role)
        config.inference_mode = True
        config.task_type = TaskType.CAUSAL_LM
        if role in self.heads:
            config.task_type = TaskType.SEQ_CLS
            config.modules_to_save = list(HEAD_NAMES)
            for name, tensor in self.heads[role].state_dict().items():
                weights[f"base_model.model.{HEAD_NAMES[0]}.{name}"] = tensor
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()},
            folder / "adapter_model.safetensors",
        )
        config.save_pretrained(str(folder))


def _checksum(weight: Tensor) -> Tensor:
    """XOR over a tensor's bits, 64 at a time where they divide: any one change shows."""
    flat = weight.detach().contiguous().flatten()
    whole = flat.numel() * flat.element_size() % 8 == 0
    return torch.hash_tensor(flat.view(torch.int64) if whole else flat)
