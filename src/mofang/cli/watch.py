"""Keep the documents of a base what the files of a folder are: new, changed, renamed and deleted ones.

The base itself is the state: every pass compares the folder with what the base holds under the folder's prefix, so
nothing is missed that changed while nobody watched, and a watch that was killed goes on where it was. New files come
in before old ones go: a file that was renamed keeps its vectors. What failed is tried again with the next change.
Documents that do not begin with the prefix are never touched.
"""

import hashlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mofang.cli.files import batches, below
from mofang.errors import MofangError, NotFound, Unreachable

if TYPE_CHECKING:
    from mofang.client import Client

SETTLE_S = 1.0
"""A file that was written less long ago may not be whole yet."""
RETRY_S = 10.0
"""After the gateway did not answer."""
_TICK_MS = 500

Batch = Sequence[tuple[str, Path]]
Ingest = Callable[[Batch], tuple[list[dict[str, Any]], bool]]
"""Uploads a batch: the files' reports, and whether Ctrl-C ended it."""
Tell = Callable[[Mapping[str, Any]], None]
"""Hears of each file: a report as of `kb add`, or {"name", "status": "removed" | "kept"}."""


@dataclass
class Mirror:
    """`prefix` stands before the names of the folder's documents. `document_name` is how the gateway writes a name."""

    client: "Client"
    base: str
    folder: Path
    prefix: str
    suffixes: Collection[str]
    document_name: Callable[[str], str]
    ingest: Ingest
    tell: Tell
    may_empty: bool = False
    """Whether all documents may go at once; else that is taken for another folder of that name, or a share that is not
    mounted, and they are kept."""
    _n_failed: int = 0
    """In this pass."""
    _digests: dict[Path, tuple[int, int, str]] = field(default_factory=dict)
    _told: dict[str, str] = field(default_factory=dict)
    """What was last said of a file that failed, so that it is not said again and again."""

    def sync(self) -> bool:
        """One pass; False when a file is still being written and another pass must follow.

        Raises NotFound when the folder is gone, KeyboardInterrupt when Ctrl-C ended an upload, and what the client
        raises.
        """
        if not self.folder.is_dir():
            raise NotFound("cli.watched_folder_gone", path=self.folder)
        wanted = {self._name(path): path for path in below(self.folder, self.suffixes, [])}
        there = {
            str(document["name"]): document
            for document in self.client.documents(self.base)
            if str(document["name"]).startswith(f"{self.prefix}/")
        }
        self._n_failed = 0
        is_settled = self._bring(wanted, there)
        self._remove(wanted, there)
        return is_settled

    def _name(self, path: Path) -> str:
        return self.document_name(f"{self.prefix}/{path.relative_to(self.folder).as_posix()}")

    def _bring(self, wanted: Mapping[str, Path], there: Mapping[str, Mapping[str, Any]]) -> bool:
        changed: list[tuple[str, Path]] = []
        is_settled = True
        for name, path in wanted.items():
            try:
                stat = path.stat()
                if 0 <= time.time() - stat.st_mtime < SETTLE_S:
                    is_settled = False
                elif self._sha256(path) != there.get(name, {}).get("sha256"):
                    changed.append((name, path))
            except OSError:
                is_settled = False  # moved or deleted just now, or locked by the program that writes it
        try:
            for batch in batches(changed):
                reports, stopped = self.ingest(batch)
                for report in reports:
                    self._report(report)
                if stopped:
                    raise KeyboardInterrupt
        except FileNotFoundError:
            return False
        return is_settled

    def _sha256(self, path: Path) -> str:
        stat = path.stat()
        known = self._digests.get(path)
        if known is None or known[:2] != (stat.st_mtime_ns, stat.st_size):
            with path.open("rb") as file:
                known = (stat.st_mtime_ns, stat.st_size, hashlib.file_digest(file, "sha256").hexdigest())
            self._digests[path] = known
        return known[2]

    def _report(self, report: Mapping[str, Any]) -> None:
        name, status = str(report["name"]), str(report["status"])
        said = str(report.get("error") or "")
        self._n_failed += status == "failed"
        if status != "unchanged" and (status != "failed" or self._told.get(name) != said):
            self.tell(report)
        self._told[name] = said

    def _remove(self, wanted: Mapping[str, Path], there: Mapping[str, Mapping[str, Any]]) -> None:
        gone = [name for name in there if name not in wanted and not self._of_archive(name)]
        present = {self._digests[path][2] for path in wanted.values() if path in self._digests}
        lost = [name for name in gone if there[name]["sha256"] not in present]  # the others have a new name
        if len(lost) == len(there) > 1 and not self.may_empty:
            for name in gone:
                if self._told.get(name) != "kept":
                    self.tell({"name": name, "status": "kept"})
                    self._told[name] = "kept"
            return
        # A file that failed under its new name keeps its old document until that works.
        for name in lost if self._n_failed else gone:
            try:
                self.client.remove_document(self.base, str(there[name]["id"]))
            except MofangError as error:
                if getattr(error, "status", 0) != 404:
                    raise
            self._told.pop(name, None)
            self.tell({"name": name, "status": "removed"})

    def _of_archive(self, name: str) -> bool:
        """Whether it came out of a zip that lies in the folder: those are added by hand, and not watched."""
        parts = Path(name.removeprefix(f"{self.prefix}/")).parts
        return any((self.folder.joinpath(*parts[:n]).with_suffix(".zip")).is_file() for n in range(1, len(parts)))


def watch(mirror: Mirror, on_error: Callable[[MofangError], None], ticks: Iterator[object] | None = None) -> None:
    """Sync now, and with every change, until Ctrl-C. A gateway that does not answer is tried again after a while.

    The folder is listened to from before the first pass on. `ticks` (for tests): an item for each moment to look,
    true when something changed; the end of them ends the watch.
    """
    is_pending = True
    next_try = 0.0
    try:
        for changes in ticks if ticks is not None else _changes(mirror.folder):
            is_pending = is_pending or bool(changes)
            if not is_pending or time.monotonic() < next_try:
                continue
            try:
                is_pending = not mirror.sync()
            except MofangError as error:
                if not _passes(error):
                    raise
                on_error(error)
                next_try = time.monotonic() + RETRY_S
    except KeyboardInterrupt:
        return


def _passes(error: MofangError) -> bool:
    """Whether it may be over in a while: the gateway is away, busy, or at fault itself."""
    return isinstance(error, Unreachable) or error.status == 429 or error.status >= 500


def _changes(folder: Path) -> Iterator[object]:
    """A set of changes (gathered until the folder is quiet), or an empty one every _TICK_MS."""
    from watchfiles import watch as listen

    return listen(folder, watch_filter=None, rust_timeout=_TICK_MS, yield_on_timeout=True)
