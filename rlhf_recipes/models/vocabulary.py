"""Check a tokenizer against its model, and against another tokenizer."""

import logging

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.models.chat_templates import template_differences

SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token")


def set_padding(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Use the end-of-sequence token for padding if a tokenizer has no padding token."""
    if tokenizer.eos_token is None:
        raise RecipeError(
            f"The tokenizer of `{name}` has no end-of-sequence token, so no completion could end. "
            "Set `eos_token` in its tokenizer_config.json to the token that ends a turn."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        logging.getLogger(__name__).warning(
            "The tokenizer of `%s` has no padding token, so its end-of-sequence token %s is used. "
            "A reward model then reads its score one token before the end.",
            name,
            tokenizer.eos_token,
        )


def check_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise RecipeError if a tokenizer, not opened by `open_tokenizer`, cannot pad."""
    for token in ("pad_token", "eos_token"):
        if getattr(tokenizer, token) is None:
            raise RecipeError(
                f"The tokenizer of `{tokenizer.name_or_path}` has no {token}. Set "
                f"`tokenizer.{token}`; a model without a padding token can use its "
                "end-of-sequence token."
            )


def check_vocabulary(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, name: str
) -> None:
    """Raise RecipeError if a tokenizer gives ids that the model has no embedding for.

    Tokens for images or audio may be beyond the embeddings (Gemma 3 has one). For tokens that are
    neither special nor in the chat template, only a warning is logged.
    """
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if rows is None:
        return
    padding = getattr(config.get_text_config(), "pad_token_id", None)
    if padding is not None and padding >= rows:
        raise RecipeError(
            f"The configuration of `{name}` has `pad_token_id` {padding}, and its model has "
            f"{rows:,} embeddings, so it cannot be built. Set it in config.json to an id below "
            "that, such as the end-of-sequence token's."
        )
    beyond = {t: i for t, i in tokenizer.get_vocab().items() if i >= rows}
    if not beyond:
        return
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    special = {getattr(tokenizer, kind) for kind in SPECIAL_TOKENS}
    used = sorted(token for token in beyond if token in special or token in template)
    if used:
        listed = ", ".join(f"`{token}` (id {beyond[token]})" for token in used[:5])
        raise RecipeError(
            f"The tokenizer of `{name}` has {len(tokenizer):,} tokens and its model {rows:,} "
            f"embeddings: {listed} {'have' if used[1:] else 'has'} none, so the first text with "
            "it would fail. Use a token that the model has (`pad_token` may be the "
            "end-of-sequence token), or resize the model's embeddings, train them, and save both."
        )
    logging.getLogger(__name__).warning(
        "The tokenizer of `%s` has %d tokens beyond the model's %d embeddings, such as %s: a text "
        "that contains one of them fails.",
        name,
        len(beyond),
        rows,
        next(iter(beyond)),
    )


def check_same_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    other: PreTrainedTokenizerBase,
    names: tuple[str, str],
    consequence: str,
) -> None:
    """Raise RecipeError if two tokenizers can encode the same conversation differently.

    Args:
        names: Names of the two models for the error.
        consequence: Sentence that says what would go wrong.
    """
    differences = [
        f"`{kind}` is {getattr(tokenizer, kind)!r} and {getattr(other, kind)!r}"
        for kind in SPECIAL_TOKENS
        if getattr(tokenizer, kind) != getattr(other, kind)
    ]
    differences += template_differences(tokenizer, other)
    vocabulary = tokenizer.get_vocab()
    moved = sorted(vocabulary.items() ^ other.get_vocab().items())
    if moved:
        differences.append(f"they number tokens differently, such as {moved[0][0]!r}")
    if differences:
        raise RecipeError(
            f"The tokenizers of {names[0]} and {names[1]} differ: {'; '.join(differences)}. "
            f"{consequence} Train both with the same `model_name_or_path`, `chat_template` and "
            "`chat_template_kwargs`."
        )
