"""Load a base model: its identity, precision, configuration, weights and tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from huggingface_hub import try_to_load_from_cache
from peft import LoraConfig
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.utils.peft_utils import find_adapter_config_file
from trl import ModelConfig, get_quantization_config

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.models.chat_templates import bind_template_kwargs
from rlhf_recipes.models.dropout import turn_off_dropout
from rlhf_recipes.models.embedded import embedded_base
from rlhf_recipes.models.vocabulary import check_vocabulary, set_padding
from rlhf_recipes.sharding import sharding_launched, unsharded


def base_path(name: str) -> str:
    """Return the path or Hub id that `from_pretrained` opens for a base model's name in a recipe.

    An embedded base (`demo`, `tiny`) is written to the Hugging Face cache on first use. A local
    folder or a Hub id is returned as it is.
    """
    return str(embedded_base(name) or name)


@dataclass(frozen=True)
class Base:
    """Name of a base model and, on the Hub, its branch, tag or commit (None is main)."""

    name: str
    revision: str | None = None

    @classmethod
    def of(cls, model: ModelConfig) -> "Base":
        """Return the base of a recipe, its revision resolved to a commit."""
        return cls(str(model.model_name_or_path), model.model_revision).pinned()

    def pinned(self) -> "Base":
        """Return this base with its revision resolved to a commit, where the cache has it.

        Later stages then open the same weights even if the branch has moved on.
        """
        name = base_path(self.name)
        if Path(name).is_dir():
            return Base(name)
        file = try_to_load_from_cache(name, "config.json", revision=self.revision)
        return Base(name, Path(file).parent.name if isinstance(file, str) else self.revision)

    def is_same(self, other: "Base") -> bool:
        """Return whether two bases are the same: by real path for local folders, else by commit."""
        first, second = self.pinned(), other.pinned()
        names = {
            str(Path(base.name).resolve()) if Path(base.name).is_dir() else base.name
            for base in (first, second)
        }
        return len(names) == 1 and (first.revision or "main") == (second.revision or "main")

    def __str__(self) -> str:
        at = "" if self.revision in (None, "main") else f" at revision `{self.revision}`"
        return f"`{self.name}`{at}"


@dataclass(frozen=True)
class Precision:
    """Precision of a base's weights in memory, in the keys of a recipe."""

    dtype: str = "float32"
    load_in_8bit: bool = False
    load_in_4bit: bool = False
    bnb_4bit_quant_type: str = "nf4"
    use_bnb_nested_quant: bool = False
    bnb_4bit_quant_storage: str | None = None

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> "Precision":
        """Read the precision from a recipe's settings; missing and null keys are defaults."""
        names = cls.__dataclass_fields__.keys() & settings.keys()
        values = {name: settings[name] for name in names if settings[name] is not None}
        if not values.get("load_in_4bit"):  # the other keys describe how 4 bits are stored
            values = {name: value for name, value in values.items() if "bnb" not in name}
        return cls(**values)

    def kwargs(self) -> dict[str, Any]:
        """Return the arguments for `from_pretrained`."""
        quantization = get_quantization_config(ModelConfig(**vars(self)))
        return {"dtype": self.dtype, "quantization_config": quantization}

    @property
    def bits(self) -> int | None:
        """Number of bits that a linear layer's weights are quantized to; None if they are not."""
        return 4 if self.load_in_4bit else 8 if self.load_in_8bit else None

    def __str__(self) -> str:
        if self.load_in_8bit:
            return f"{self.dtype}, quantized to 8 bits"
        if not self.load_in_4bit:
            return self.dtype
        nested = ", nested" if self.use_bnb_nested_quant else ""
        return f"{self.dtype}, quantized to 4 bits ({self.bnb_4bit_quant_type}{nested})"


def init_kwargs(model: ModelConfig) -> dict[str, Any]:
    """Return the arguments of a recipe's model for `from_pretrained`, except quantization."""
    return {
        "revision": Base.of(model).revision or "main",
        "dtype": model.dtype or "float32",
        "attn_implementation": model.attn_implementation,
    }


def open_config(name: str, revision: str | None = None) -> PretrainedConfig:
    """Open the configuration of a base; raise RecipeError if it is no causal language model.

    No weights are read. An adapter folder is refused, because transformers would open its base with
    or without the adapter and would not say which.
    """
    path = base_path(name)
    _check_not_adapter(name, path, revision)
    _check_folder(name, Path(path), revision)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path, revision=revision or "main")
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(_cannot_open("configuration", name, error)) from error
    kind, names = type(config), " ".join(config.architectures or ())
    if config.is_encoder_decoder:
        raise RecipeError(_no_language_model(name, f"an encoder-decoder model ({kind.__name__})"))
    encodes = kind in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    if encodes or "ForMaskedLM" in names:
        raise RecipeError(_no_language_model(name, f"an encoder ({kind.__name__})"))
    if "Classification" in names:
        raise RecipeError(
            _no_language_model(name, f"a classifier ({names}), which has no language-model head")
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise RecipeError(_no_language_model(name, f"a model that writes no text ({names})"))
    return config


def check_generation_config(base: Base) -> None:
    """Raise RecipeError if a base's generation_config.json cannot be read.

    transformers would continue without it, and so without its end-of-sequence tokens.
    """
    name, file = base_path(base.name), "generation_config.json"
    path: Any = Path(name, file)
    if not Path(name).is_dir():
        path = try_to_load_from_cache(name, file, revision=base.revision)
    if not isinstance(path, str | Path) or not Path(path).is_file():
        return  # the file is optional
    try:
        GenerationConfig.from_pretrained(Path(path).parent)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RecipeError(
            f"{path} cannot be read: {str(error).strip().splitlines()[0]} It names the tokens "
            "that end a completion, so without it completions would end elsewhere. Restore the "
            "file, or delete it if the tokenizer's end-of-sequence token is the only one."
        ) from error


def classifier_config(name: str, revision: str | None = None) -> PretrainedConfig:
    """Return the configuration of a base's sequence classifier; raise RecipeError if none exists.

    The classifier has the decoder of the language model. Checkpoints of Qwen3.5 also hold a vision
    tower, which AutoModelForCausalLM leaves out: a reward adapter trained with it would fit no
    policy's base.
    """
    config = open_config(name, revision)
    language_model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if language_model.config_class is config.sub_configs.get("text_config"):
        config = config.get_text_config()
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise RecipeError(
            f"`{name}` is of the architecture `{config.model_type}`, of which transformers has no "
            "sequence classifier, so no reward model can be trained on it. Use a base that has "
            "one, such as Llama, Qwen or GPT-2. PPO and GRPO can train this base on "
            "`reward_funcs`."
        )
    config.num_labels = 1
    return config


def open_classifier(model: ModelConfig, seed: int, *, dropout: bool = True) -> PreTrainedModel:
    """Open the base that a recipe names with a scalar head in place of its own.

    Args:
        seed: Seed of the head's initial weights.
        dropout: False sets every dropout probability of the base to 0.
    """
    name = str(model.model_name_or_path)
    kwargs = init_kwargs(model)
    set_seed(seed)
    try:
        classifier: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            base_path(name),
            config=classifier_config(name, kwargs["revision"]),
            quantization_config=get_quantization_config(model),
            **kwargs,
            **({} if sharding_launched() else on_device()),
        )
    except (OSError, ValueError) as error:
        raise RecipeError(_cannot_open("model", name, error)) from error
    if not dropout:
        turn_off_dropout(classifier)
    return classifier


def open_language_model(model: ModelConfig, *, dropout: bool = True) -> PreTrainedModel:
    """Open the base that a recipe trains; under ZeRO-3 its weights are sharded over the processes.

    Args:
        dropout: False sets every dropout probability of the base to 0.
    """
    base = _open_language_model(
        str(model.model_name_or_path),
        quantization_config=get_quantization_config(model),
        **init_kwargs(model),
        **({} if sharding_launched() else on_device()),
    )
    if not dropout:
        turn_off_dropout(base)
    return base


def open_base(name: str, **kwargs: Any) -> PreTrainedModel:
    """Open a causal language model, in float32 by default, unsharded on each process's device."""
    with unsharded():
        return _open_language_model(name, **{"dtype": "float32", **on_device(), **kwargs})


def _open_language_model(name: str, **kwargs: Any) -> PreTrainedModel:
    open_config(name, kwargs.get("revision"))
    try:
        model = AutoModelForCausalLM.from_pretrained(base_path(name), **kwargs)
    except (OSError, ValueError) as error:
        raise RecipeError(_cannot_open("model", name, error)) from error
    model.eval()
    return model


def on_device() -> dict[str, Any]:
    """Return the argument that makes `from_pretrained` read weights onto this process's GPU.

    Without it each process of a machine first reads a copy into the machine's memory. Empty where
    there is no GPU.
    """
    device = PartialState().device
    if device.type in ("cpu", "mps"):
        return {}
    return {"device_map": {"": torch.device(device.type, device.index or 0)}}


def open_tokenizer(
    name: str,
    chat_template: str | None = None,
    revision: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> PreTrainedTokenizerBase:
    """Open the tokenizer of a base model, set its padding token, and check it against the model.

    Every stage opens its tokenizer here before any weights, so a mismatch is refused first.

    Args:
        name: Base model.
        chat_template: A Jinja file, for a base without a chat template.
        revision: Branch, tag or commit of a base on the Hub.
        chat_template_kwargs: Values of the template's variables, bound to the template.
    """
    config = open_config(name, revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(base_path(name), revision=revision or "main")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RecipeError(_cannot_open("tokenizer", name, error)) from error
    set_padding(tokenizer, name)
    if chat_template is not None:
        try:
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
        except OSError as error:
            raise RecipeError(
                f"`chat_template` names {chat_template}, which cannot be read "
                f"({error.strerror}). Give the path of a Jinja file, or leave the key out."
            ) from error
    bind_template_kwargs(tokenizer, chat_template_kwargs)
    check_vocabulary(tokenizer, config, name)
    return tokenizer


def _check_not_adapter(name: str, path: str, revision: str | None) -> None:
    file = find_adapter_config_file(path, revision=revision)
    if file is None:
        return
    try:
        base = LoraConfig.from_json_file(file).get("base_model_name_or_path")
    except ValueError as error:
        raise RecipeError(_cannot_open("adapter configuration", name, error)) from error
    raise RecipeError(
        f"`{name}` is an adapter, trained on `{base}`, not a base model. Give `{base}` "
        "as `model_name_or_path`. To continue from this adapter, PPO, GRPO, DPO and evaluate.py "
        "have `sft_model_path`; for other stages merge it into its base with PEFT's "
        "`merge_and_unload`, save that with its tokenizer, and give the new folder."
    )


def _check_folder(name: str, path: Path, revision: str | None) -> None:
    """Raise RecipeError, saying what it holds, if a local folder has no configuration."""
    if not path.is_dir():
        return
    if revision not in (None, "main"):
        raise RecipeError(
            f"`model_revision` is {revision}, but `{name}` is a local folder, which has no "
            "revisions. Leave `model_revision` out, or give a Hub id."
        )
    if (path / "config.json").is_file():
        return
    files = sorted(file.name for file in path.iterdir())
    contents = {
        "a GGUF file, which is for inference": any(f.endswith(".gguf") for f in files),
        "a dataset or a run's outputs": "run.json" in files or "models" in files,
        "a processor": "preprocessor_config.json" in files or "processor_config.json" in files,
        "a tokenizer": "tokenizer_config.json" in files,
    }
    holds = next((kind for kind, present in contents.items() if present), ", ".join(files[:5]))
    raise RecipeError(
        f"The model `{name}` cannot be opened: the folder has no config.json. It holds "
        f"{holds or 'nothing'}. "
        "Give a folder that a model's `save_pretrained` wrote, or a Hub id."
    )


def _no_language_model(name: str, what: str) -> str:
    return (
        f"`{name}` is {what}, not a causal language model. Give a causal language model, such as "
        "Llama, Qwen or GPT-2, before any other head was trained on it."
    )


def _cannot_open(what: str, name: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0]
    return (
        f"The {what} of `{name}` cannot be opened: {reason} "
        "Give the Hub id of a causal language model, or a local folder written by "
        "`save_pretrained`; without a network it must be in the Hugging Face cache already."
    )
