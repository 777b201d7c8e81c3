"""Which pretrained weights an experiment starts from, resolved once on the host."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from research.core.parts import part, require
from research.huggingface.export import TOKENIZER_FILES
from research.huggingface.folder import open_folder, weight_files
from research.models.architecture import Architecture

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WANTED = ("*.json", "*.safetensors", *TOKENIZER_FILES, "additional_chat_templates/*")
_UNWANTED = ("consolidated*", "original/*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolved:
    """Weights that are on this machine.

    Attributes:
      fingerprint: hash of the weight files' contents.
    """

    folder: Path
    architecture: Architecture
    fingerprint: str


@part
class Pretrained:
    """A model folder, or a repository of the Hugging Face hub.

    Attributes:
      folder: a path, or a hub id such as "Qwen/Qwen3-0.6B".
      revision: commit, tag or branch of a hub id; None: its default branch.
    """

    folder: str
    revision: str | None = None

    def __post_init__(self) -> None:
        require(self, (bool(self.folder), "folder is empty; give a path or a hub id"))

    def resolve(self) -> Resolved:
        """Find or fetch the folder, read its architecture, and hash its weights.

        Raises:
          FileNotFoundError, ValueError: what is missing or not supported, and the remedy.
        """
        folder = locate(self.folder, self.revision)
        opened = open_folder(folder)
        return Resolved(
            folder=folder, architecture=opened.architecture, fingerprint=fingerprint(folder)
        )


def locate(folder: str | Path, revision: str | None = None) -> Path:
    """Give the local folder of a path or a hub id, fetching what is not here yet.

    Only configs, safetensors and tokenizer files are fetched: no pickles and no code.

    Raises:
      FileNotFoundError: it is neither a folder nor a hub id that can be fetched.
      ValueError: a revision is asked of a local folder.
    """
    path = Path(folder)
    if path.is_dir():
        if revision is not None:
            raise ValueError(
                f"revision={revision!r} cannot take effect: {folder} is a local folder; "
                "leave it out"
            )
        return path.resolve()
    if not _HUB_ID.fullmatch(str(folder)):
        raise FileNotFoundError(
            f"{folder} is not a folder, nor a hub id (owner/name); give the path of a model folder"
        )
    try:
        fetched = snapshot_download(
            str(folder),
            revision=revision,
            allow_patterns=list(_WANTED),
            ignore_patterns=list(_UNWANTED),
        )
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(
            f"{folder} is not a folder here, and as a hub id it cannot be fetched ({error}); "
            "correct the path, or the id and revision, or log in to the hub for a gated model"
        ) from error
    return Path(fetched)


def fingerprint(folder: str | Path) -> str:
    """Hash every byte of the weight files, files in parallel.

    Law: the same weights in another place have the same fingerprint; any changed byte another one.
    """

    def digest(file: Path) -> bytes:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()

    with concurrent.futures.ThreadPoolExecutor() as pool:
        digests = list(pool.map(digest, weight_files(Path(folder))))
    return "sha256:" + hashlib.sha256(b"".join(digests)).hexdigest()
