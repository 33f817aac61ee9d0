"""Stage upload: put an exported model into a repository of the Hugging Face hub."""

import contextlib
import glob
import os
from collections.abc import Iterator

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from minillm.config.export import TOKEN_VARIABLE
from minillm.errors import StageError, first_line
from minillm.files import write_json
from minillm.stages.base import Job, Summary
from minillm.stages.pages import Upload
from minillm.store.artifacts import CLOCKED
from minillm.store.manifest import read_manifest

PASSING = (408, 409, 412, 423, 425, 429)
"""HTTP statuses below 500 after which another attempt may succeed."""


def run(job: Job[Upload]) -> Summary:
    """Make the repository if it is not there, and make its files those of the export in one commit.

    An upload that failed goes on where it stopped: what the hub has already is not sent again.
    """
    settings, model = job.settings, job.inputs["model"]
    files = [name for name in read_manifest(model).files if name not in CLOCKED]
    with _explained(settings):
        api = open_repository(settings)
        print(f"uploading {len(files)} files to {settings.endpoint}/{settings.hub}", flush=True)
        commit = api.upload_folder(
            repo_id=settings.hub,
            folder_path=model,
            allow_patterns=[glob.escape(name) for name in files],
            delete_patterns="*",
            commit_message=f"Upload {settings.role}",
        )
    url = f"{settings.endpoint}/{settings.hub}/tree/{commit.oid}"
    print(f"uploaded: {url}", flush=True)
    write_json(job.output / "upload.json", {"url": url})
    return {"url": url}


def open_repository(settings: Upload) -> HfApi:
    """Make the repository if it is not there; return the client of the hub.

    Raises:
        StageError: The hub refuses it, or it is public and should be private, or the reverse.
        HfHubHTTPError: The hub is out of order; another attempt may succeed.
        OSError: It cannot be reached.
    """
    api = HfApi(endpoint=settings.endpoint, token=os.environ[TOKEN_VARIABLE])
    with _explained(settings):
        api.create_repo(settings.hub, private=not settings.public, exist_ok=True)
        _require_visibility(api, settings)
    return api


def _require_visibility(api: HfApi, settings: Upload) -> None:
    """Check that a repository which was there before is public only if it may be.

    Raises:
        StageError: It is public and should be private, or the reverse.
    """
    private = bool(api.model_info(settings.hub).private)
    if private == settings.public:
        now, wanted = ("private", "public") if private else ("public", "private")
        raise StageError(
            f"{settings.endpoint}/{settings.hub} is {now}, but export.public is {str(settings.public).lower()}, so "
            f"nothing was uploaded; make it {wanted} on its page, or change export.public or export.hub"
        )


@contextlib.contextmanager
def _explained(settings: Upload) -> Iterator[None]:
    """Turn a refusal that another attempt would meet again into a StageError."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status >= 500 or status in PASSING:
            raise
        if status == 401:
            raise StageError(
                f"{settings.endpoint} does not accept the token in {TOKEN_VARIABLE} (401); export one that may write "
                f"to {settings.hub}, and run the same command again: only the upload is left"
            ) from error
        raise StageError(
            f"{settings.endpoint} refuses the upload to {settings.hub} ({status}): {first_line(error)}; the token in "
            f"{TOKEN_VARIABLE} must be allowed to write there"
        ) from error
