"""Which folders are base models, at which revision, and whether their tokenizers fit."""

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)
from trl import ModelConfig

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.models.adapters import read_adapter
from rlhf_recipes.models.loading import (
    Base,
    Precision,
    base_path,
    init_kwargs,
    open_base,
    open_classifier,
    open_config,
    open_language_model,
    open_tokenizer,
)
from rlhf_recipes.models.lora import lora_config
from rlhf_recipes.models.vocabulary import check_same_tokenizer
from rlhf_recipes.preferences.lengths import TokenCounter
from rlhf_recipes.preferences.shapes import Pair
from rlhf_recipes.rewards import RewardModel
from rlhf_recipes.roles import Roles

HUB_ID = "someone/tiny"
PAIR = Pair(
    [{"role": "user", "content": "Hi."}],
    [{"role": "assistant", "content": "Yes."}],
    [{"role": "assistant", "content": "No."}],
    1,
    "here",
    "",
)
COMMITS = {"main": "a" * 40, "v2": "b" * 40}


@pytest.fixture
def tiny(tmp_path) -> Path:
    """Copy the base `tiny` to a folder that a test may change."""
    return Path(shutil.copytree(base_path("tiny"), tmp_path / "tiny"))


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """Make a cache with two revisions of a model that differ in weights and chat template."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    for i, (name, commit) in enumerate(COMMITS.items()):
        snapshot = repository / "snapshots" / commit
        base = open_base("tiny")
        with torch.no_grad():
            base.model.norm.weight += i
        base.save_pretrained(snapshot)
        tokenizer = open_tokenizer("tiny")
        tokenizer.chat_template += "!" * i
        tokenizer.save_pretrained(snapshot)
        (repository / "refs" / name).write_text(commit)
    return repository


def test_a_revision_is_used_for_weights_tokenizer_and_adapter(hub):
    for name, commit in COMMITS.items():
        model = ModelConfig(HUB_ID, model_revision=name, use_peft=True, lora_target_modules=["q"])
        assert Base.of(model) == Base(HUB_ID, commit)
        assert init_kwargs(model)["revision"] == commit
        assert lora_config(model).revision == commit
        marks = int(name == "v2")
        assert open_tokenizer(HUB_ID, None, name).chat_template.count("!") == marks
        assert TokenCounter(HUB_ID, None, name)([PAIR])[0].prompt == 22 + marks
        norm = open_base(HUB_ID, revision=name).model.norm.weight
        assert norm.mean() == 1 + marks


def test_revisions_are_compared_by_their_commits(hub):
    assert Base(HUB_ID).is_same(Base(HUB_ID, "main"))
    assert Base(HUB_ID).is_same(Base(HUB_ID, COMMITS["main"]))
    assert not Base(HUB_ID).is_same(Base(HUB_ID, "v2"))
    before = Base(HUB_ID).pinned()
    (hub / "refs" / "main").write_text(COMMITS["v2"])  # the branch moves on
    assert not before.is_same(Base(HUB_ID))


def test_a_reward_model_opens_the_revision_it_was_trained_on(hub, tmp_path):
    roles = Roles(open_base(HUB_ID, revision="v2"))
    lora = LoraConfig(r=2, target_modules=["q_proj"], revision=COMMITS["v2"])
    roles.attach("reward", lora, trainable=False)
    roles.attach_head("reward", torch.ones(1, 32), None, trainable=False)
    roles.save_role("reward", tmp_path / "reward")
    saved = json.loads((tmp_path / "reward" / "adapter_config.json").read_text())
    assert saved["revision"] == COMMITS["v2"]
    alone = RewardModel.load(tmp_path / "reward")
    assert alone.roles.base.model.norm.weight.mean() == 2
    assert alone.tokenizer.chat_template.endswith("!")
    with pytest.raises(RecipeError, match=r"trained on .*bbbb.*but the recipe's base is"):
        read_adapter(tmp_path / "reward").check_base(Base(HUB_ID))


def test_a_reward_model_opens_its_base_in_the_precision_of_training(tmp_path):
    roles = Roles(open_base("tiny"))
    roles.attach("reward", LoraConfig(r=2, target_modules=["q_proj"]), trainable=False)
    roles.attach_head("reward", torch.ones(1, 32), None, trainable=False)
    roles.save_role("reward", tmp_path)
    assert RewardModel.load(tmp_path).roles.base.dtype == torch.float32
    (tmp_path / "recipe.yaml").write_text("dtype: bfloat16\n")
    assert RewardModel.load(tmp_path).roles.base.dtype == torch.bfloat16
    assert RewardModel.load(tmp_path, dtype="float32").roles.base.dtype == torch.float32


def test_a_precision_is_read_and_passed_to_from_pretrained():
    four = Precision.read(
        {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "use_bnb_nested_quant": True}
    )
    assert str(four) == "float32, quantized to 4 bits (fp4, nested)"
    asked = four.kwargs()["quantization_config"]
    assert (asked.bnb_4bit_quant_type, asked.bnb_4bit_use_double_quant) == ("fp4", True)
    assert Precision.read({"dtype": None, "bnb_4bit_quant_type": "fp4"}) == Precision()
    assert Precision().kwargs() == {"dtype": "float32", "quantization_config": None}


def adapter(folder: Path) -> str:
    roles = Roles(open_base("tiny"))
    roles.attach("policy", LoraConfig(r=2, target_modules=["q_proj"]), trainable=True)
    roles.save_role("policy", folder)
    open_tokenizer("tiny").save_pretrained(folder)
    return f"is an adapter, trained on `{base_path('tiny')}`.*sft_model_path.*merge_and_unload"


def adapter_beside_a_model(folder: Path) -> str:
    open_base("tiny").save_pretrained(folder)
    return adapter(folder)


def classifier(folder: Path) -> str:
    LlamaForSequenceClassification(open_base("tiny").config).save_pretrained(folder)
    return "is a classifier .LlamaForSequenceClassification"


def encoder(folder: Path) -> str:
    config = BertConfig(
        vocab_size=259, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    return "is an encoder .BertConfig"


def encoder_decoder(folder: Path) -> str:
    config = T5Config(vocab_size=259, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return "is an encoder-decoder model .T5Config"


def gguf(folder: Path) -> str:
    folder.mkdir()
    (folder / "model-q4.gguf").touch()
    return "no config.json. It holds a GGUF file"


def processor(folder: Path) -> str:
    folder.mkdir()
    (folder / "preprocessor_config.json").write_text("{}")
    return "no config.json. It holds a processor"


def only_tokenizer(folder: Path) -> str:
    open_tokenizer("tiny").save_pretrained(folder)
    return "no config.json. It holds a tokenizer"


def workspace(folder: Path) -> str:
    (folder / "models").mkdir(parents=True)
    return "no config.json. It holds a dataset or a run's outputs"


def nothing(folder: Path) -> str:
    folder.mkdir()
    return "no config.json. It holds nothing"


KINDS = [
    *(adapter, adapter_beside_a_model, classifier, encoder, encoder_decoder),
    *(gguf, processor, only_tokenizer, workspace, nothing),
]


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_a_folder_that_is_no_base_is_refused_with_what_it_holds(make, tmp_path):
    folder = tmp_path / "folder"
    sentence = make(folder)
    for opened in (open_config, open_tokenizer, open_base):
        with pytest.raises(RecipeError, match=sentence):
            opened(str(folder))


def test_a_local_folder_has_no_revisions(tiny):
    open_config(str(tiny), "main")
    with pytest.raises(RecipeError, match=r"`model_revision` is v2, but .* is a local folder"):
        open_config(str(tiny), "v2")


def with_tokens(folder: Path, **special) -> None:
    """Add special tokens to the folder's tokenizer without resizing its model."""
    tokenizer = open_tokenizer("tiny")
    tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("kind", ["pad_token", "eos_token", "bos_token"])
def test_a_special_token_beyond_the_embeddings_is_refused(kind, tiny):
    with_tokens(tiny, **{kind: "<new>"})
    with pytest.raises(RecipeError, match=r"260 tokens .* 259 embeddings: `<new>` \(id 259\)"):
        open_tokenizer(str(tiny))


def test_a_token_of_the_template_beyond_the_embeddings_is_refused_and_others_warn(tiny, caplog):
    with_tokens(tiny, additional_special_tokens=["<image>"])
    with caplog.at_level(logging.WARNING):
        open_tokenizer(str(tiny))
    assert "1 tokens beyond the model's 259 embeddings, such as <image>" in caplog.text
    template = tiny / "chat_template.jinja"
    template.write_text(template.read_text() + "<image>")
    with pytest.raises(RecipeError, match=r"`<image>` .id 259. has none"):
        open_tokenizer(str(tiny))


def test_a_tokenizer_needs_an_eos_token_and_pads_with_it_by_default(tiny, caplog):
    file = tiny / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings["pad_token"] = None
    file.write_text(json.dumps(settings))
    with caplog.at_level(logging.WARNING):
        tokenizer = open_tokenizer(str(tiny))
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"
    assert "has no padding token" in caplog.text
    file.write_text(json.dumps(settings | {"eos_token": None}))
    with pytest.raises(RecipeError, match="no end-of-sequence token"):
        open_tokenizer(str(tiny))


def test_tokenizers_that_encode_differently_are_refused():
    first = open_tokenizer("tiny")
    check_same_tokenizer(first, open_tokenizer("tiny"), ("a", "b"), "It matters.")
    for change, sentence in (
        ({"chat_template": "{{ messages }}"}, "chat templates"),
        ({"pad_token": "a"}, "`pad_token` is '<|pad|>' and 'a'"),
    ):
        other = open_tokenizer("tiny")
        for name, value in change.items():
            setattr(other, name, value)
        with pytest.raises(RecipeError, match=sentence):
            check_same_tokenizer(first, other, ("a", "b"), "It matters.")
    other = open_tokenizer("tiny")
    other.add_tokens(["a word"])
    with pytest.raises(RecipeError, match="number tokens differently, such as 'a word'"):
        check_same_tokenizer(first, other, ("a", "b"), "It matters.")


def test_an_adapter_that_later_stages_would_refuse_is_refused_before_training():
    with pytest.raises(RecipeError, match="`modules_to_save: "):
        lora_config(ModelConfig("tiny", use_peft=True, lora_modules_to_save=["lm_head"]))


def test_padding_beyond_the_embeddings_is_refused_before_weights(tiny):
    file = tiny / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token_id": 259}))
    with pytest.raises(RecipeError, match="`pad_token_id` 259, and its model has 259 embeddings"):
        open_tokenizer(str(tiny))


def test_an_adapter_from_the_hub_is_refused_as_an_adapter(hub):
    adapter(hub / "snapshots" / COMMITS["main"])
    (hub / "snapshots" / COMMITS["main"] / "config.json").unlink()
    with pytest.raises(RecipeError, match=f"`{HUB_ID}` is an adapter, trained on "):
        open_tokenizer(HUB_ID)


def test_a_damaged_adapter_folder_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{not json")
    with pytest.raises(RecipeError, match=r"adapter configuration of .* cannot be opened"):
        open_config(str(tmp_path))


def test_a_base_is_read_onto_the_device_of_its_process(monkeypatch):
    """The device `meta` stands for a GPU here: weights that were read to the CPU would be there."""
    model = ModelConfig(model_name_or_path="tiny")

    def devices():
        opened = open_base("tiny"), open_language_model(model), open_classifier(model, seed=0)
        return [{p.device.type for p in base.parameters()} for base in opened]

    assert devices() == [{"cpu"}] * 3
    monkeypatch.setattr(
        "rlhf_recipes.models.loading.PartialState",
        lambda: SimpleNamespace(device=torch.device("meta")),
    )
    assert devices() == [{"meta"}] * 3
    # FSDP and DeepSpeed place the weights of what they train themselves.
    monkeypatch.setattr("rlhf_recipes.models.loading.sharding_launched", lambda: True)
    assert devices() == [{"meta"}, {"cpu"}, {"cpu"}]
