"""Models of the Hugging Face hub: resolve a revision to its commit, find the checkpoint, fetch it.

`huggingface_hub` does the transfer (resumed downloads, progress bar, tokens, proxies) with its usual
variables `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME` and `HF_HUB_OFFLINE`. A branch is always resolved to a commit
first and files are fetched by commit, so that the running model has an exact name. The last commit of each
branch is noted beside the cache: a model that was loaded once loads again when the hub is out of reach.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm

from gpu_worker.model.errors import HubError
from gpu_worker.model.loaded_model import CONFIG_NAME, TOKENIZER_NAME

HUB_IDS: Final = {
    "small": "nvidia/parakeet_realtime_eou_120m-v1",
    "large": "nvidia/nemotron-speech-streaming-en-0.6b",
}
LISTING_TIMEOUT_S: Final = 15.0
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
# Transport errors have the HTTP client library's own class, which is a base of the hub's error.
_HUB_ERRORS: Final[tuple[type[Exception], ...]] = (
    OSError,
    *(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)),
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HubFiles:
    """The files of one commit that make a checkpoint: one `.nemo`, or the files of a folder."""

    repo_id: str
    commit: str
    files: tuple[str, ...]


class Hub:
    """The hub behind one endpoint, with one cache folder.

    The defaults of `endpoint` and `cache_dir` are those of `huggingface_hub`, from the environment.
    """

    def __init__(self, *, endpoint: str | None = None, cache_dir: Path | None = None) -> None:
        self.endpoint: Final = endpoint or constants.ENDPOINT
        self.cache_dir: Final = cache_dir or Path(constants.HF_HUB_CACHE)
        self._api: Final = HfApi(endpoint=self.endpoint)

    def resolve(self, repo_id: str, revision: str) -> str:
        """Return the commit of a branch, tag or commit. Raises HubError.

        A full commit hash is returned unchanged. When the hub cannot be reached, the name's last known commit
        is used and a warning is logged.
        """
        if _COMMIT.fullmatch(revision):
            return revision
        try:
            info = self._api.model_info(repo_id, revision=revision, timeout=LISTING_TIMEOUT_S)
        except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
            raise self._not_found(repo_id, revision, error) from error
        except _HUB_ERRORS as error:
            noted = self._noted_commit(repo_id, revision)
            if noted is None:
                raise self._unreachable(repo_id, revision, error) from error
            logger.warning(
                "the hub cannot be reached; using %s at commit %s, which '%s' was when it was last resolved",
                repo_id,
                noted,
                revision,
            )
            return noted
        if info.sha is None:
            raise HubError(f"{self.endpoint} names no commit for {repo_id} at '{revision}'.")
        self._note_commit(repo_id, revision, info.sha)
        return info.sha

    def find(self, repo_id: str, commit: str) -> HubFiles:
        """List a commit and pick its checkpoint. Raises HubError for no checkpoint or several."""
        try:
            info = self._api.model_info(repo_id, revision=commit, timeout=LISTING_TIMEOUT_S)
        except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
            raise self._not_found(repo_id, commit, error) from error
        except _HUB_ERRORS as error:
            raise self._unreachable(repo_id, commit, error) from error
        names = [sibling.rfilename for sibling in info.siblings or ()]
        return HubFiles(repo_id, commit, pick_checkpoint(names, f"{repo_id} at {commit}"))

    def fetch(self, found: HubFiles) -> Path:
        """Download what is not cached yet, with a progress bar.  Raises HubError.

        Returns the `.nemo` file, or the folder that holds the checkpoint's files.
        """
        path = Path()
        for name in found.files:
            try:
                path = Path(
                    hf_hub_download(
                        found.repo_id,
                        name,
                        revision=found.commit,
                        cache_dir=self.cache_dir,
                        endpoint=self.endpoint,
                        tqdm_class=_ProgressBar,
                    )
                )
            except _HUB_ERRORS as error:
                raise self._unreachable(found.repo_id, found.commit, error) from error
        return path if path.suffix == ".nemo" else path.parent

    def _notes_file(self, repo_id: str, revision: str) -> Path:
        repo, name = (re.sub(r"[^\w.-]", "--", part) for part in (repo_id, revision))
        return self.cache_dir.parent / "parakeet-revisions" / repo / name

    def _noted_commit(self, repo_id: str, revision: str) -> str | None:
        try:
            text = self._notes_file(repo_id, revision).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return text if _COMMIT.fullmatch(text) else None

    def _note_commit(self, repo_id: str, revision: str, commit: str) -> None:
        note = self._notes_file(repo_id, revision)
        try:
            note.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=note.parent, delete=False) as file:
                file.write(commit)
            os.replace(file.name, note)  # noqa: PTH105
        except OSError as error:
            logger.warning("the resolved commit cannot be noted at %s: %s", note, error)

    def _not_found(self, repo_id: str, revision: str, error: Exception) -> HubError:
        if isinstance(error, GatedRepoError):
            return HubError(
                f"{repo_id} is gated: accept its terms at {self.endpoint}/{repo_id} and set HF_TOKEN."
            )
        return HubError(
            f"{self.endpoint} has no model '{repo_id}' with a revision '{revision}', or it is private and "
            "HF_TOKEN is not set. Check --model and --model-revision."
        )

    def _unreachable(self, repo_id: str, revision: str, error: Exception) -> HubError:
        reason = str(error).split("\n", 1)[0] or type(error).__name__
        if isinstance(error, OSError) and error.filename is not None:
            return HubError(
                f"{repo_id} at '{revision}' cannot be kept in the cache {self.cache_dir} ({reason}). Set "
                "HF_HOME to a folder that can be written to; or start with --model PATH; or use --model-size "
                "tiny, which needs no download."
            )
        return HubError(
            f"{repo_id} at '{revision}' is not in the cache {self.cache_dir} and cannot be fetched from "
            f"{self.endpoint} ({reason}). Check the network or HF_ENDPOINT; or fetch the .nemo file on "
            "another machine and start with --model PATH; or use --model-size tiny, which needs no download."
        )


class _ProgressBar(tqdm):
    """The hub's progress bar, which is also shown, less often, when standard error is not a terminal.

    `HF_HUB_DISABLE_PROGRESS_BARS` still turns it off.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("disable") is None:
            kwargs["disable"] = False
            kwargs["mininterval"] = 0.1 if sys.stderr.isatty() else 10.0
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]


def pick_checkpoint(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Return the files to fetch: the one `.nemo`, or a folder's safetensors, config and tokenizer.

    A repository may have safetensors of another library beside its `.nemo`; safetensors are only taken
    together with NeMo's config. Raises HubError.
    """
    archives = [name for name in names if name.endswith(".nemo")]
    if len(archives) == 1:
        return (archives[0],)
    if len(archives) > 1:
        raise HubError(
            f"{where} has {len(archives)} .nemo files ({', '.join(archives[:5])}); fetch the one you mean "
            "and start with --model PATH."
        )
    tensors = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    if tensors and CONFIG_NAME in names and TOKENIZER_NAME in names:
        return (CONFIG_NAME, TOKENIZER_NAME, *sorted(tensors))
    listing = ", ".join(sorted(names)[:12]) or "nothing"
    raise HubError(
        f"{where} has no .nemo file, nor {CONFIG_NAME}, {TOKENIZER_NAME} and .safetensors files; it has "
        f"{listing}."
    )
