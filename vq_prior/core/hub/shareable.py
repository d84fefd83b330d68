"""From a folder or the Hub to an object and back, once for the codec, the prior and the pipeline of both."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Self

from vq_prior.core.disk.artifacts import new_folder, require_replaceable
from vq_prior.core.disk.components import WEIGHTS
from vq_prior.core.disk.records import keep_record
from vq_prior.core.hub.repository import local, push_component

NAMES = {"vqvae": "codec", "prior": "prior"}


class Shareable:
    """What is read from a folder or the Hub, written to a folder whole, and sent to the Hub as one commit.

    A component says which one it is (`component`), how it is read (`_of_folder`) and written (`_write`).
    """

    component: ClassVar[str]
    loaded_from: Path | None

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Return what a folder, RUN, MODEL or Hub id `owner/name[@revision]` holds of this kind; every byte is checked.

        Args:
            path: Where it is; an existing path wins over the Hub.
            revision: Branch, tag or commit on the Hub; None is its main branch.
            token: Access token of the Hub; None takes the stored one, False none.
            cache_dir: Where fetched files are kept; None takes the Hub client's default.
            local_files_only: Whether to stay off the network and take what the cache holds.

        Raises:
            ArtifactError: If it is missing, damaged, of another kind, or its parts do not fit each other.
            EnvironmentFault: If the Hub cannot be reached and the cache holds no copy.
        """
        options = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        with local(path, revision=revision, say=print, **options) as folder:
            return cls._of_folder(folder)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the component's folder, whole, with its manifest; one of its kind that is there is replaced."""
        require_replaceable(Path(folder), WEIGHTS, NAMES[self.component])
        with new_folder(Path(folder)) as staging:
            self._write(staging)
            keep_record(self.loaded_from, staging)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        license_id: str | None = None,
        token: str | bool | None = None,
    ) -> str:
        """Send it to the Hub as one commit and return where it can be seen.

        Args:
            repo_id: `owner/name`; made if it does not exist.
            private: Whether a repository made now is private.
            revision: Branch; None is main, another one is made from main.
            create_pr: Whether to open a pull request instead.
            license_id: Licence for the card, as the Hub writes it.
            token: Access token; None takes the stored one.

        Raises:
            UsageError: If an argument is malformed.
            ArtifactError: If the repository may not be written.
            EnvironmentFault: If the Hub cannot be reached, or the repository moved meanwhile.
        """
        options = {"private": private, "revision": revision, "create_pr": create_pr, "license_id": license_id}
        with TemporaryDirectory(prefix="vq-prior-") as temporary:
            folder = Path(temporary) / self.component
            self.save_pretrained(folder)
            return self._send(folder, repo_id, token=token, **options)

    @classmethod
    def _of_folder(cls, folder: Path) -> Self:
        raise NotImplementedError

    def _write(self, staging: Path) -> None:
        """Write the component's files into a staging folder."""
        raise NotImplementedError

    def _send(self, folder: Path, repo_id: str, **options: Any) -> str:
        """Send the folder that was just written."""
        return push_component(folder, self.component, repo_id, **options)
