"""A base model: its identity, how its weights are held, and its tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from rlhf_recipes.models.embedded import embedded_base
from rlhf_recipes.models.vocabulary import check_vocabulary, set_padding
from rlhf_recipes.sharding import unsharded


def base_path(name: str) -> str:
    """What `from_pretrained` is to be given for a base model's name in a recipe.

    An embedded base (`demo`, `tiny`) is written to the Hugging Face cache on first use; a local
    folder or a Hub id stands for itself.
    """
    return str(embedded_base(name) or name)


@dataclass(frozen=True)
class Base:
    """Which base model: a name, and for one of the Hub a branch, tag or commit (None is main)."""

    name: str
    revision: str | None = None

    @classmethod
    def of(cls, model: ModelConfig) -> "Base":
        """The base that a recipe names; a Hub id's revision as the commit it stands for now."""
        return cls(str(model.model_name_or_path), model.model_revision).pinned()

    def pinned(self) -> "Base":
        """This base at the commit that its revision stands for, where the cache knows it.

        What is opened later, or by another stage, is then the same even if the branch moves on.
        """
        name = base_path(self.name)
        if Path(name).is_dir():
            return Base(name)
        file = try_to_load_from_cache(name, "config.json", revision=self.revision)
        return Base(name, Path(file).parent.name if isinstance(file, str) else self.revision)

    def is_same(self, other: "Base") -> bool:
        """Whether two are one base: local folders by their real path, others by their commit."""
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
    """How a base's weights are held in memory, in the terms of a recipe."""

    dtype: str = "float32"
    load_in_8bit: bool = False
    load_in_4bit: bool = False
    bnb_4bit_quant_type: str = "nf4"
    use_bnb_nested_quant: bool = False
    bnb_4bit_quant_storage: str | None = None

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> "Precision":
        """The precision that a recipe asks for; what it leaves out, and null, is the default."""
        names = cls.__dataclass_fields__.keys() & settings.keys()
        given = {name: settings[name] for name in names if settings[name] is not None}
        if not given.get("load_in_4bit"):  # the rest says how 4 bits are stored
            given = {name: value for name, value in given.items() if "bnb" not in name}
        return cls(**given)

    def kwargs(self) -> dict[str, Any]:
        """What `from_pretrained` is to be told."""
        quantization = get_quantization_config(ModelConfig(**vars(self)))
        return {"dtype": self.dtype, "quantization_config": quantization}

    @property
    def bits(self) -> int | None:
        """How many bits a linear layer's weights are quantized to."""
        return 4 if self.load_in_4bit else 8 if self.load_in_8bit else None

    def __str__(self) -> str:
        if self.load_in_8bit:
            return f"{self.dtype}, quantized to 8 bits"
        if not self.load_in_4bit:
            return self.dtype
        nested = ", nested" if self.use_bnb_nested_quant else ""
        return f"{self.dtype}, quantized to 4 bits ({self.bnb_4bit_quant_type}{nested})"


def init_kwargs(model: ModelConfig) -> dict[str, Any]:
    """What `from_pretrained` is to be told about a recipe's model, quantization apart."""
    return {
        "revision": Base.of(model).revision or "main",
        "dtype": model.dtype or "float32",
        "attn_implementation": model.attn_implementation,
    }


def open_config(name: str, revision: str | None = None) -> PretrainedConfig:
    """The configuration of a base, refused where it is no causal language model.

    No weights are read. An adapter folder is refused by name: transformers would open its base with
    the adapter on it, or without, and neither is said.
    """
    path = base_path(name)
    _check_not_adapter(name, path, revision)
    _check_folder(name, Path(path), revision)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path, revision=revision or "main")
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(_cannot_open("configuration", name, error)) from error
    kind, made = type(config), " ".join(config.architectures or ())
    if config.is_encoder_decoder:
        raise RecipeError(_no_language_model(name, f"an encoder-decoder model ({kind.__name__})"))
    encodes = kind in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    if encodes or "ForMaskedLM" in made:
        raise RecipeError(_no_language_model(name, f"an encoder ({kind.__name__})"))
    if "Classification" in made:
        raise RecipeError(
            _no_language_model(name, f"a classifier ({made}), whose language-model head is gone")
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise RecipeError(_no_language_model(name, f"of a kind that writes no text ({made})"))
    return config


def check_generation_config(base: Base) -> None:
    """Raise RecipeError where a base's generation_config.json cannot be read.

    transformers would go on without it, and its end-of-sequence tokens end completions.
    """
    name, file = base_path(base.name), "generation_config.json"
    there: Any = Path(name, file)
    if not Path(name).is_dir():
        there = try_to_load_from_cache(name, file, revision=base.revision)
    if not isinstance(there, str | Path) or not Path(there).is_file():
        return  # a base needs none
    try:
        GenerationConfig.from_pretrained(Path(there).parent)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RecipeError(
            f"{there} cannot be read: {str(error).strip().splitlines()[0]} It names the tokens "
            "that end a completion, so sampling would not be the model's without it. Bring the "
            "file back, or delete it if the tokenizer's end-of-sequence token is the only one."
        ) from error


def classifier_config(name: str, revision: str | None = None) -> PretrainedConfig:
    """The configuration of a base's sequence classifier, refused where there is no such class.

    The classifier is of the decoder that the language model has. Checkpoints of Qwen3.5 hold a
    vision tower as well, which AutoModelForCausalLM leaves out: a reward adapter trained with it
    would fit no policy's base.
    """
    config = open_config(name, revision)
    language_model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if language_model.config_class is config.sub_configs.get("text_config"):
        config = config.get_text_config()
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise RecipeError(
            f"`{name}` is of the architecture `{config.model_type}`, of which transformers has no "
            "sequence classifier, so that no reward model can be trained on it. Take a base that "
            "has one, such as Llama, Qwen or GPT-2. PPO and GRPO train this one on `reward_funcs`."
        )
    config.num_labels = 1
    return config


def open_classifier(model: ModelConfig, seed: int) -> PreTrainedModel:
    """The base that a recipe names with a scalar head in place of its own, drawn with that seed."""
    name = str(model.model_name_or_path)
    kwargs = init_kwargs(model)
    set_seed(seed)
    try:
        return AutoModelForSequenceClassification.from_pretrained(  # type: ignore[no-any-return]
            base_path(name),
            config=classifier_config(name, kwargs["revision"]),
            quantization_config=get_quantization_config(model),
            **kwargs,
        )
    except (OSError, ValueError) as error:
        raise RecipeError(_cannot_open("model", name, error)) from error


def open_language_model(model: ModelConfig) -> PreTrainedModel:
    """The base that a recipe trains; under ZeRO-3 its weights are spread over the processes."""
    quantization = get_quantization_config(model)
    return _open_language_model(
        str(model.model_name_or_path), quantization_config=quantization, **init_kwargs(model)
    )


def open_base(name: str, **kwargs: Any) -> PreTrainedModel:
    """The causal language model of that name, float32 unless told otherwise, whole."""
    with unsharded():
        return _open_language_model(name, **{"dtype": "float32", **kwargs})


def _open_language_model(name: str, **kwargs: Any) -> PreTrainedModel:
    open_config(name, kwargs.get("revision"))
    try:
        model = AutoModelForCausalLM.from_pretrained(base_path(name), **kwargs)
    except (OSError, ValueError) as error:
        raise RecipeError(_cannot_open("model", name, error)) from error
    model.eval()
    return model


def open_tokenizer(
    name: str, chat_template: str | None = None, revision: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model, with a padding token set, checked against the model.

    Every stage opens its tokenizer here, before any weights: what does not fit is refused first.

    Args:
        name: Base model.
        chat_template: A Jinja file, for a base that comes without a chat template.
        revision: Branch, tag or commit of a base on the Hub.
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
        f"`{name}` is an adapter, trained on `{base}`, and a base model is wanted. Give `{base}` "
        "as `model_name_or_path`. To go on from this adapter, PPO and evaluate.py have "
        "`sft_model_path`; for other stages merge it into its base with PEFT's "
        "`merge_and_unload`, save that with its tokenizer, and give the new folder."
    )


def _check_folder(name: str, path: Path, revision: str | None) -> None:
    """Say what a local folder holds that has no configuration."""
    if not path.is_dir():
        return
    if revision not in (None, "main"):
        raise RecipeError(
            f"`model_revision` is {revision}, but `{name}` is a local folder, which has only what "
            "lies in it. Leave `model_revision` out, or give a Hub id."
        )
    if (path / "config.json").is_file():
        return
    files = sorted(file.name for file in path.iterdir())
    what = {
        "a GGUF file, which is for inference": any(f.endswith(".gguf") for f in files),
        "a dataset or a run's outputs": "run.json" in files or "models" in files,
        "a processor": "preprocessor_config.json" in files or "processor_config.json" in files,
        "a tokenizer": "tokenizer_config.json" in files,
    }
    holds = next((kind for kind, there in what.items() if there), ", ".join(files[:5]) or "nothing")
    raise RecipeError(
        f"The model `{name}` cannot be opened: the folder has no config.json. It holds {holds}. "
        "Give a folder that a model's `save_pretrained` wrote, or a Hub id."
    )


def _no_language_model(name: str, what: str) -> str:
    return (
        f"`{name}` is {what}. What is trained and sampled here is a causal language model, such "
        "as Llama, Qwen or GPT-2: give one, as it was before any other head was trained on it."
    )


def _cannot_open(what: str, name: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0]
    return (
        f"The {what} of `{name}` cannot be opened: {reason} "
        "Give the Hub id of a causal language model, or a local folder written by "
        "`save_pretrained`; without a network it must be in the Hugging Face cache already."
    )
