"""Push the adapters of finished runs to the Hugging Face Hub, each with its model card.

    python -m rlhf_recipes.hub.push outputs --user NAME

Repositories are private unless `--public` is given. The files that are pushed are enough to load
and to reproduce the adapter. Checkpoints, optimizer state and completions are not pushed.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import yaml
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented
from safetensors import SafetensorError, safe_open

from rlhf_recipes.ending import run_script
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.hub.model_card import card_text, public_base
from rlhf_recipes.records import read_json, workspace, write_text

PUSHED = (
    "adapter_config.json",
    "*.safetensors",
    "tokenizer*",
    "chat_template*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "README.md",
    "recipe.yaml",
    "run.json",
    "training_curves.png",
    "value/adapter_config.json",
    "value/*.safetensors",
)
"""Files of a run folder that are pushed; `value` is the adapter of PPO's value model."""

STRUCTURED = (".json", ".yaml")
TEXTS = (*STRUCTURED, ".md", ".jinja")
CARD = "README.md"
VOCABULARY = "tokenizer.json"  # has no paths, and a token must not be changed


def write_card(run_folder: Path, record: Mapping[str, Any], name: str) -> None:
    """Write the model card of a run to README.md; the arguments are those of `card_text`."""
    write_text(run_folder / CARD, card_text(run_folder, record, name))


def repo_name(run_folder: Path) -> str:
    """Return the name of a run's repository, such as `outputs-ppo` for outputs/models/ppo_model."""
    stage = run_folder.name.removesuffix("_model")
    shared = workspace(run_folder)
    return stage if shared == run_folder else f"{shared.resolve().name}-{stage}"


def check_push(repo_id: str, token: str | None) -> None:
    """Raise RecipeError if a push is known to fail, without a request to the Hub."""
    if constants.HF_HUB_OFFLINE:
        raise RecipeError(
            f"{repo_id} could not be pushed: HF_HUB_OFFLINE is set. Unset it, or leave "
            "`push_to_hub` out and push the finished run with `make push`."
        )
    if token is None and get_token() is None:
        raise RecipeError(
            f"{repo_id} could not be pushed: there is no token on this machine. Log in with "
            "`hf auth login`, set HF_TOKEN, or leave `push_to_hub` out."
        )
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise RecipeError(
            f"`hub_model_id` is {repo_id}, which cannot name a repository: {error}"
        ) from error


def push(run_folder: Path, repo_id: str, private: bool = True, token: str | None = None) -> str:
    """Push a finished run to the Hub and return the URL of its repository.

    A repository that exists gets another commit.

    Args:
        run_folder: Contains an adapter and its `run.json`. Nothing but a missing card is written
            into it.
        repo_id: `name` or `user/name`; the default user is the token's.
        private: Whether the repository is private. An existing public repository is then refused,
            because the Hub would keep it public.
        token: Used instead of HF_TOKEN or the token that `hf auth login` stored.

    Raises RecipeError, with nothing pushed, if the run is unfinished or damaged or the Hub refuses.
    """
    record = _read_run(run_folder)
    if not _has_own_card(run_folder):
        write_card(run_folder, record, run_folder.name)
    for weights in sorted({*run_folder.glob("*.safetensors"), *run_folder.glob("value/*.safet*")}):
        _check_weights(weights)
    contents = _contents(run_folder)
    api = HfApi(token=token, library_name="rlhf_recipes")
    with _hub_errors(run_folder, repo_id):
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.model_info(url.repo_id).private:
            raise RecipeError(
                f"{url} exists and is public, so {run_folder} was not pushed to it. Push to "
                "another name, make that repository private in its settings, or push in public: "
                "`make push ARGS=--public`, or `hub_private_repo: false` in a recipe."
            )
        here, there = (f'adapter = "{name}"'.encode() for name in (run_folder.name, url.repo_id))
        contents[CARD] = contents[CARD].replace(here, there)
        operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
        api.create_commit(url.repo_id, operations, commit_message=f"Push {run_folder.name}")
    return str(url)


def push_all(output_dir: Path, user: str, private: bool = True) -> Iterator[tuple[Path, str]]:
    """Push every finished run of `output_dir/models` to `user/repo_name(folder)`.

    Yields the folder and the URL of each run after it is pushed.
    """
    folders = sorted(record.parent for record in output_dir.glob("models/*/run.json"))
    if not folders:
        raise RecipeError(
            f"{output_dir}/models has no finished run, so there is nothing to push. "
            "Train one first, for example with `make dpo`, or name another folder with OUT=."
        )
    for folder in folders:
        yield folder, push(folder, f"{user}/{repo_name(folder)}", private)


def _read_run(run_folder: Path) -> dict[str, Any]:
    for name in ("run.json", "adapter_config.json"):
        if not (run_folder / name).is_file():
            raise RecipeError(
                f"{run_folder} has no {name}, so it is not the folder of a finished training run. "
                "Finish the run first, or name another folder."
            )
    if not list(run_folder.glob("adapter_model*.safetensors")):
        raise RecipeError(
            f"{run_folder} has no adapter_model.safetensors: its weights are lost, so there is "
            "nothing to push. Bring the file back, or train again with `--overwrite`."
        )
    with _damage(run_folder / "adapter_config.json"):
        _ = read_json(run_folder / "adapter_config.json")["base_model_name_or_path"]
    record: dict[str, Any] = read_json(run_folder / "run.json")
    return record


def _check_weights(path: Path) -> None:
    """Raise RecipeError unless the file has tensors and all of them are finite."""
    problem = ""
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            bad = [name for name in names if not file.get_tensor(name).isfinite().all()]
    except SafetensorError as error:
        problem = f"is {path.stat().st_size} bytes that cannot be read ({error})"
    else:
        if not names:
            problem = "has no tensors in it"
        elif bad:
            problem = f"has NaN or infinity in {len(bad)} of {len(names)} tensors, such as {bad[0]}"
    if problem:
        raise RecipeError(
            f"{path} {problem}, so it was not pushed. Restore a copy of the file, or train again "
            "with `--overwrite`."
        )


def _has_own_card(run_folder: Path) -> bool:
    """Whether the card is from `write_card` and may have been edited, not from TRL's trainers."""
    path = run_folder / CARD
    if not path.is_file():
        return False
    with _damage(path):
        return "rlhf_recipes" in (ModelCard.load(path).data.tags or [])


def _contents(run_folder: Path) -> dict[str, bytes]:
    """Return the contents of the files to push, by name, with local paths removed from texts."""
    contents = {}
    base = read_json(run_folder / "adapter_config.json")["base_model_name_or_path"]
    for path in sorted({path for pattern in PUSHED for path in run_folder.glob(pattern)}):
        if path.suffix in TEXTS and path.name != VOCABULARY:
            with _damage(path):
                content = _public_text(path, base, workspace(run_folder)).encode()
        else:
            content = path.read_bytes()
        contents[path.relative_to(run_folder).as_posix()] = content
    return contents


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn the exception that a damaged file raises into a RecipeError that names the file."""
    try:
        yield
    except (ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        reason = str(error).partition("\n")[0]
        raise RecipeError(
            f"{path} is damaged ({reason}), so {path.parent} was not pushed. Restore a copy of the "
            f"file, or train again with `--overwrite`. {CARD} can simply be deleted: it is written "
            "again."
        ) from error


def _public_text(path: Path, base: str, shared: Path) -> str:
    """Return the text of a file with local paths replaced by names."""
    text = path.read_text(encoding="utf-8")
    names = {base: public_base(base)}  # first, because a base may be inside the workspace
    for folder in (shared.absolute(), shared.resolve()):
        names[str(folder)] = shared.resolve().name
    if path.suffix in STRUCTURED:
        is_json = path.suffix == ".json"
        data = json.loads(text) if is_json else yaml.safe_load(text)
        public = _public_value(data, names)
        if public != data:
            written = json.dumps(public, indent=2, ensure_ascii=False)
            text = written if is_json else yaml.safe_dump(public, sort_keys=False)
    names |= {str(Path.cwd()): Path.cwd().name, str(Path.home()): "~"}
    for local, name in names.items():
        if Path(local).is_absolute() and local != "/":
            text = re.sub(rf"{re.escape(local)}(?![\w.-])", name.replace("\\", r"\\"), text)
    return text


def _public_value(value: Any, names: Mapping[str, str]) -> Any:
    """Return a JSON or YAML value with absolute paths relative to the workspace, or as names.

    Args:
        names: Replacements of local paths.
    """
    if isinstance(value, dict):
        return {key: _public_value(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_public_value(item, names) for item in value]
    if not isinstance(value, str) or value in names:
        return names.get(value, value) if isinstance(value, str) else value
    path = Path(value)
    if "\n" in value or not path.is_absolute() or len(path.parts) < 3:
        return value
    for local, name in names.items():
        if path.is_relative_to(local):
            return str(Path(name) / path.relative_to(local))
    return path.name


@contextmanager
def _hub_errors(run_folder: Path, repo_id: str) -> Iterator[None]:
    """Turn the exceptions of the Hub and the network into a RecipeError that says what to do."""
    remedy = f"Nothing is lost: {run_folder} is complete, and `make push` can be repeated."
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise RecipeError(
            f"{repo_id} cannot be pushed: HF_HUB_OFFLINE is set. Unset it to push. {remedy}"
        ) from error
    except HFValidationError as error:
        raise RecipeError(f"`{repo_id}` cannot name a repository: {error} {remedy}") from error
    except (json.JSONDecodeError, KeyError) as error:
        raise RecipeError(
            f"{repo_id} cannot be pushed: the server at {constants.ENDPOINT} does not respond like "
            "the Hub. It may be the login page of this network: open a web page in a browser and "
            f"log in, or check HF_ENDPOINT if it is set. {remedy}"
        ) from error
    except HfHubHTTPError as error:
        raise RecipeError(f"{_refusal(repo_id, error)} {remedy}") from error
    except (httpx2.TransportError, OSError, RuntimeError) as error:
        # Uploads of large files raise OSError or RuntimeError for a broken connection.
        raise RecipeError(
            f"{repo_id} cannot be pushed: the Hub does not respond ({error}). Check the network, "
            f"and HF_ENDPOINT if it is set. {remedy}"
        ) from error


def _refusal(repo_id: str, error: HfHubHTTPError) -> str:
    status = error.response.status_code
    if status == 401:
        return (
            f"{repo_id} cannot be pushed: there is no token, or the Hub rejects it (401). "
            "Log in with `hf auth login`, or set HF_TOKEN to a token with write access."
        )
    if status == 403:
        return (
            f"{repo_id} cannot be pushed: the token has no write access to it (403). Create a "
            "token with write access to that account at hf.co/settings/tokens and set HF_TOKEN to "
            "it, or give your own account: HUB_USER=."
        )
    return f"{repo_id} cannot be pushed: the Hub responded {error}"


def main() -> None:
    """Push every finished run of a workspace and print its URL."""
    parser = argparse.ArgumentParser(prog="python -m rlhf_recipes.hub.push", description=__doc__)
    parser.add_argument("output_dir", type=Path, help="Folder that contains models/.")
    parser.add_argument("--user", required=True, help="Account or organization to push to.")
    parser.add_argument("--public", action="store_true", help="Create public repositories.")
    options = parser.parse_args()
    for folder, url in push_all(options.output_dir, options.user, private=not options.public):
        sys.stdout.write(f"{folder} -> {url}\n")


if __name__ == "__main__":
    run_script(main)
