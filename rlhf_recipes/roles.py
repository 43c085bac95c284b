"""One frozen base model in memory, every role an adapter: the only place that switches adapters.

PEFT's own switches change `requires_grad` without being asked: leaving `disable_adapter()` freezes
what was trainable or unfreezes what was frozen, and `set_adapter()` unfreezes. Here each
parameter's flag is decided once, when its adapter is attached, and restored after every switch.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import (
    LoraConfig,
    PeftModel,
    TaskType,
    get_peft_model_state_dict,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.logprobs import token_logps
from rlhf_recipes.models.adapters import Adapter, read_adapter
from rlhf_recipes.models.dropout import turn_off_dropout
from rlhf_recipes.models.logits import logits_of
from rlhf_recipes.models.lora import HEAD_NAMES, check_lora
from rlhf_recipes.models.merging import EXACT, merged
from rlhf_recipes.models.starting import does_not_fit, load_weights
from rlhf_recipes.prefix_sharing.forward import (
    can_share_prefixes,
    packed_pass,
    use_packed_attention,
)
from rlhf_recipes.prefix_sharing.packing import Packer
from rlhf_recipes.prefix_sharing.shared_layers import (
    num_shared_layers,
    only_layers,
    upper_layer_input,
)
from rlhf_recipes.prompts import position_ids


class RoleOutput(NamedTuple):
    """Output of a role for each completion token, shape (batch, completion), 0 for padding.

    Attributes:
        logps: Log-probabilities in nats, of a role without a scalar head.
        entropy: Entropy of the distribution of each token in nats, of a role without a scalar head.
        values: Values of a role with a scalar head, which are not set to 0 for padding.
    """

    logps: Tensor | None = None
    entropy: Tensor | None = None
    values: Tensor | None = None


class Roles(nn.Module):
    """A frozen causal language model with named LoRA adapters, some with a scalar head.

    A role is an adapter's name; None is the base with all adapters off. Dropout is off in all
    roles: PPO's ratio compares two passes over the same tokens.

    On the PeftModel of another trainer, its adapter is a role already and stays active, with its
    dropout and its `requires_grad` as they are.

    With gradient checkpointing the backward pass recomputes activations with whatever adapter is
    active then: hold `use(role)` over forward *and* backward.

    Args:
        model: The base, or a PeftModel on it.
        prefix_sharing: Whether a prefix that rows of a batch share is computed once, where the
            architecture allows it.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, *, prefix_sharing: bool = True) -> None:
        super().__init__()
        peft = model if isinstance(model, PeftModel) else None
        base: Any = model if peft is None else peft.get_base_model()
        self.base: PreTrainedModel = base
        self.heads = nn.ModuleDict()
        self.active: str | None = None if peft is None else peft.active_adapter
        # In a list: not a second path to the same parameters.
        self._peft: list[PeftModel] = [] if peft is None else [peft]
        self._trainable = {p: peft is not None and p.requires_grad for p in base.parameters()}
        self._fix_flags(trainable=False)
        if peft is None:
            turn_off_dropout(base)
        self.num_shared_layers = num_shared_layers(base)
        # Names without any adapter; a tied embedding and head are listed under both.
        self._base_weights = {
            name.replace(".base_layer.", "."): weight
            for name, weight in base.named_parameters(remove_duplicate=False)
            if "lora_" not in name
        }
        self._checksums = {weight: _checksum(weight) for weight in self._base_weights.values()}
        self.shares_prefixes = prefix_sharing and can_share_prefixes(base)
        self._packer = Packer()
        if self.shares_prefixes:
            use_packed_attention(base)

    def attach(self, role: str, config: LoraConfig, *, trainable: bool) -> None:
        """Add a fresh adapter: B = 0, so the role starts as the base itself."""
        check_lora(config.to_dict(), f"What `{role}` is to be")
        config.lora_dropout = 0.0
        # `get_peft_model` and `save_pretrained` of PEFT set this; neither is used here.
        config.base_model_name_or_path = self.base.name_or_path
        if self._peft:
            self._peft[0].add_adapter(role, config)
        else:
            self._peft.append(PeftModel(self.base, config, adapter_name=role))
        self._fix_flags(trainable)
        self._activate(self.active)
        self.num_shared_layers = num_shared_layers(self.base)
        self._check_base_unchanged(role)

    def attach_saved(self, role: str, source: str | Path | Adapter, *, trainable: bool) -> None:
        """Add a saved adapter, with its scalar head where it has one."""
        adapter = read_adapter(source)
        try:
            self.attach(role, copy.deepcopy(adapter.config), trainable=trainable)
        except ValueError as error:  # PEFT names the layers it did not find
            raise does_not_fit(str(self.base.name_or_path), adapter, str(error)) from error
        if adapter.head:
            head = adapter.head
            self.attach_head(role, head["weight"], head.get("bias"), trainable=trainable)
        self.load_role(role, adapter)

    def load_role(self, role: str, source: str | Path | Adapter) -> None:
        """Replace the weights of an attached role by those of a saved adapter."""
        adapter = read_adapter(source)
        load_weights(self._peft[0], role, adapter, self._base_weights)
        if adapter.head:
            self.heads[role].load_state_dict(dict(adapter.head))
        self._check_base_unchanged(role)

    def _check_base_unchanged(self, role: str) -> None:
        """Raise RecipeError unless the base is the same, bit for bit, as before any adapter."""
        for name, weight in self._base_weights.items():
            if not torch.equal(_checksum(weight), self._checksums[weight].to(weight.device)):
                raise RecipeError(
                    f"Attaching `{role}` changed the shared base `{self.base.name_or_path}` "
                    f"(`{name}`), so no role's output would be right. Train that adapter as plain "
                    "LoRA."
                )

    def attach_head(
        self, role: str, weight: Tensor, bias: Tensor | None, *, trainable: bool
    ) -> None:
        """Give a role the scalar head score = weight · h + bias, in float32."""
        head = nn.Linear(weight.shape[1], 1, bias=bias is not None, device=self.base.device)
        head.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
        self.heads[role] = head.requires_grad_(trainable)

    def adapter_config(self, role: str) -> LoraConfig:
        """Return a copy of a role's LoRA configuration."""
        return copy.deepcopy(self._peft[0].peft_config[role])  # type: ignore[return-value]

    def head(self, role: str) -> nn.Linear:
        """Return the scalar head of a role that has one."""
        head = self.heads[role]
        assert isinstance(head, nn.Linear)
        return head

    def _fix_flags(self, trainable: bool) -> None:
        for parameter in self.base.parameters():
            self._trainable.setdefault(parameter, trainable)
            parameter.requires_grad_(self._trainable[parameter])

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Enable activation checkpointing; the Trainer calls this where a recipe asks for it."""
        self.base.activation_checkpointing_enable(**kwargs)

    @contextmanager
    def use(self, role: str | None) -> Iterator[None]:
        """Make a role the active one, then restore the active role and all `requires_grad`."""
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
    def merged(
        self, role: str | None, dtypes: Sequence[torch.dtype] = EXACT
    ) -> Iterator[PreTrainedModel]:
        """Yield the base as a role, its adapter merged into weights of these dtypes: `merging`."""
        with self.use(role):
            if role is None:
                yield self.base
            else:
                with merged(self.base, role, dtypes):
                    yield self.base

    def forward(
        self,
        role: str | None,
        input_ids: Tensor,
        attention_mask: Tensor,
        completion_length: int,
        temperature: float = 1.0,
        shared_hidden_states: Tensor | None = None,
        *,
        entropy_grad: bool = False,
    ) -> RoleOutput:
        """Compute a role's output for the completion tokens, the last `completion_length` columns.

        Training passes use this method, so that DistributedDataParallel sees them.

        Args:
            shared_hidden_states: Output of the method of that name for the same rows, if any.
            entropy_grad: Whether the entropy has a gradient, which takes memory.
        """
        if role is not None and role in self.heads:
            # V(s_t) is read where token t is about to be chosen: one position before it.
            scores = self.scores(role, input_ids, attention_mask, shared_hidden_states)
            return RoleOutput(values=scores[:, -completion_length - 1 : -1])
        real = attention_mask[:, -completion_length:]
        with self.use(role):  # an adapter may reach the head
            hidden_states = self.completion_hidden_states(
                role, input_ids, attention_mask, completion_length, shared_hidden_states
            )
            # The head is the widest layer by far, so it runs on real tokens only.
            logits = logits_of(self.base, hidden_states)
        ids = input_ids[:, -completion_length:][real]
        flat = token_logps(logits, ids, temperature, entropy_grad=entropy_grad)
        logps, entropy = (x.new_zeros(real.shape).masked_scatter(real, x) for x in flat)
        return RoleOutput(logps, entropy)

    def completion_hidden_states(
        self,
        role: str | None,
        input_ids: Tensor,
        attention_mask: Tensor,
        completion_length: int,
        shared_hidden_states: Tensor | None = None,
    ) -> Tensor:
        """Compute the hidden states that predict each completion token, padding removed.

        Returns shape (tokens, width): the last hidden states one position before each token, row
        by row.
        """
        hidden_states = self.last_hidden_states(
            role, input_ids, attention_mask, shared_hidden_states
        )[:, -completion_length - 1 : -1]
        return hidden_states[attention_mask[:, -completion_length:]]

    def scores(
        self,
        role: str,
        input_ids: Tensor,
        attention_mask: Tensor,
        shared_hidden_states: Tensor | None = None,
    ) -> Tensor:
        """Compute the scalar head's output at every position, shape (batch, length), float32."""
        hidden_states = self.last_hidden_states(
            role, input_ids, attention_mask, shared_hidden_states
        )
        return self.head(role)(hidden_states.float()).squeeze(-1)  # type: ignore[no-any-return]

    def shared_hidden_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor | None:
        """Compute the output of the layers below the lowest adapter, which all roles share.

        Returns shape (batch, length, width), without a gradient; None if an adapter reaches the
        first layer or the architecture cannot be split.
        """
        if self.num_shared_layers == 0:
            return None
        with torch.no_grad(), only_layers(self.base, slice(0, self.num_shared_layers)):
            return self._decode(input_ids, attention_mask)

    def last_hidden_states(
        self,
        role: str | None,
        input_ids: Tensor,
        attention_mask: Tensor,
        shared_hidden_states: Tensor | None = None,
    ) -> Tensor:
        """Compute last hidden states, after the final norm, shape (batch, length, width).

        A prefix that rows share is computed once; see `prefix_sharing/packing.py`.
        """
        with self.use(role):
            if shared_hidden_states is None:
                return self._decode(input_ids, attention_mask)
            with only_layers(self.base, slice(self.num_shared_layers, None)):
                return self._decode(input_ids, attention_mask, shared_hidden_states)

    def _decode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        shared_hidden_states: Tensor | None = None,
    ) -> Tensor:
        decoder = self.base.base_model
        inputs = {"input_ids": input_ids}
        if shared_hidden_states is not None:
            inputs = {"inputs_embeds": upper_layer_input(self.base, shared_hidden_states)}
        packing = self._packer(input_ids, attention_mask) if self.shares_prefixes else None
        if packing is not None:
            packed = {name: packing.pack(tensor) for name, tensor in inputs.items()}
            return packing.unpack(packed_pass(decoder, packing, **packed).last_hidden_state)
        output = decoder(
            attention_mask=attention_mask.long(),
            position_ids=position_ids(attention_mask),
            use_cache=False,
            **inputs,
        )
        return output.last_hidden_state  # type: ignore[no-any-return]

    def save_role(self, role: str, folder: str | Path) -> None:
        """Write a role as an adapter folder that PEFT itself can load, its head included."""
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
    """Return the XOR of a tensor's bits, in words of 64 bits where they divide evenly."""
    flat = weight.detach().contiguous().flatten()
    divides = flat.numel() * flat.element_size() % 8 == 0
    return torch.hash_tensor(flat.view(torch.int64) if divides else flat)
