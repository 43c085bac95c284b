"""Rules for packages that a recipe needs and this machine may lack.

They are checked at the start of a run and not as a recipe is read, so that a recipe for another
machine can be parsed here. To add one, add a `Rule` to `PACKAGES`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from rlhf_recipes.rules.kinds import ALL, Rule, broken_rule_messages


def package_problems(instances: Sequence[Any]) -> Iterator[str]:
    """Yield a message for every package that a training recipe needs and this machine lacks."""
    return broken_rule_messages(PACKAGES, instances)


# Imported when called: these libraries look for a GPU, which `--help` need not wait for.
def _lacks_a_tracker(values: Any) -> bool:
    from transformers.integrations.integration_utils import get_available_reporting_integrations

    return not set(values.report_to) <= {*get_available_reporting_integrations()}


def _lacks_bitsandbytes(values: Any) -> bool:
    from transformers.utils.import_utils import is_bitsandbytes_available

    return (values.load_in_4bit or values.load_in_8bit) and not is_bitsandbytes_available()


def _lacks_liger(values: Any) -> bool:
    from transformers.utils.import_utils import is_liger_kernel_available

    is_ppo = hasattr(values, "num_ppo_epochs")
    return values.use_liger_kernel and (is_ppo or not is_liger_kernel_available())


def _lacks_flash_attention(values: Any) -> bool:
    from transformers.utils.import_utils import is_flash_attn_2_available

    uses_flash = values.attn_implementation == "flash_attention_2"
    return uses_flash and not is_flash_attn_2_available()


PACKAGES = (
    Rule(
        ALL,
        _lacks_a_tracker,
        "`report_to` is {report_to}, of which not all are installed. Install the packages, or "
        "leave the key out: training_<stage>.log and training_curves.png do not need them.",
    ),
    Rule(
        ALL,
        _lacks_bitsandbytes,
        "`load_in_4bit` is {load_in_4bit} and `load_in_8bit` is {load_in_8bit}, which needs the "
        "package bitsandbytes, and it is not installed. `pip install bitsandbytes`, or leave both "
        "out.",
    ),
    Rule(
        ALL,
        _lacks_flash_attention,
        "`attn_implementation` is flash_attention_2, but the package flash-attn is not installed "
        "or there is no GPU for it. Leave the key out: `sdpa` is the default.",
    ),
    Rule(
        ALL,
        _lacks_liger,
        "`use_liger_kernel` is true, but the package liger-kernel is not installed, or has no "
        "kernel for the stage {stage}. Leave it out.",
    ),
)
