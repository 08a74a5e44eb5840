"""A service: every study that arrives in a folder or from a DICOM node is segmented, measured and reviewed.

Names of files are digests of UIDs, because senders must not choose names. PS3.4, annex B, defines C-STORE.
"""

import contextlib
import hashlib
import logging
import shutil
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydicom.uid import EnhancedSRStorage, ExplicitVRLittleEndian

from medunet.deploy.cluster.ledger import Ledger, Outcome, bundle_digest
from medunet.deploy.cluster.pool import MAX_ATTEMPTS
from medunet.deploy.monailabel.server import usable_port
from medunet.errors import ConfigError, DataError, MedunetError
from medunet.files import claim
from medunet.files.atomic import temporary_name
from medunet.io.dicom.header import looks_like_dicom, read_frames
from medunet.io.dicom.references import SEG_CLASSES, read_dataset
from medunet.io.dicom.sr import ENDING as SR_ENDING
from medunet.io.dicom.tags import text
from medunet.io.extras import import_extra
from medunet.prediction import NamedSource, PredictOptions, Predictor
from medunet.prediction.configuration import CALIBRATION
from medunet.runs.measure import add_measurements
from medunet.runs.review import write_reviews

logger = logging.getLogger(__name__)

Node = tuple[str, str, int]  # AE title, host and port
TITLE = "MEDUNET"  # our AE title
UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
STATE = "state"  # file in a study's folder: its time is that of the last arrival, its text why objects may be missing
BROKEN, ENDED = "the connection broke off", "the process ended"
HOLD_SECONDS, SEND_SECONDS = 3600.0, 60.0  # until an incomplete study is given up; between attempts to send results
MAX_STUDY, RESERVE = 4 << 30, 1 << 30  # bytes of a study, and bytes that stay free on the disk
LEAST_OBJECT, LARGEST_OBJECT = 1 << 17, 1 << 30  # bytes that an object counts at least, and may have
MAX_WAITING, CONNECTIONS = 16, 4  # studies that wait; connections
STORED, NO_ROOM, UNREADABLE = (0x0000, 0xB000, 0xB006, 0xB007), 0xA700, 0xC000  # status; stored, also with a warning


@dataclass
class Listener:
    """A resident predictor that segments every series of images that arrives, once.

    `output` gets `results/STUDY/SERIES.dcm`, `SERIES_sr.dcm`, tables of the measurements, reviews if the bundle is
    calibrated, and `ledger.jsonl`, with which another listener continues. A bundle, port or folder that cannot be used
    is a MedunetError.
    """

    bundle: Path
    output: Path  # no other process may use it
    options: PredictOptions  # folder, format, measurements and isolation are set here
    store: Path | None = None  # folder in which DICOM files arrive; it is not changed
    address: tuple[str, int] | None = None  # host and port to receive studies on
    titles: Sequence[str] = ()  # the only AE titles that may send; empty for all
    send_to: Node | None = None  # node that gets the results, which are then deleted here
    modality: str | None = None  # DICOM's code of the series to segment; None takes all images
    settle: float = 30.0  # seconds without arrivals after which a study is complete

    def __post_init__(self) -> None:
        self.output = output = self.output.resolve()
        folders = (output / name for name in ("incoming", "working", "done", "results"))
        self._incoming, self._working, self._done, self._results = folders
        self._lock, self._sizes, self._send_at = threading.Lock(), Counter[str](), 0.0
        self._senders: dict[Any, set[str]] = defaultdict(set)  # studies that each connection brings
        self._seen: set[tuple[Path, int, int]] = set()
        fixed: dict[str, Any] = {"result_format": "dicom-seg", "measure": True, "isolated": True, "overwrite": True}
        fixed["review"] = (self.bundle / CALIBRATION).is_file()
        with contextlib.ExitStack() as stack:
            stack.enter_context(claim(output))
            digest = bundle_digest(self.bundle, sorted(self.options.changes.items()))
            self._ledger = stack.enter_context(Ledger(output, digest=digest))
            self._unsent = {one.name: one for one in self._ledger.outcomes.values() if one.is_done and not one.sent}
            ended = {one.name: one.attempts for one in self._ledger.outcomes.values() if one.error == ENDED}
            self._ended = Counter(ended)  # processes that ended while they segmented a series
            self._predictor = Predictor(self.bundle, self.options, output_dir=self._results, **fixed)
            if self._predictor.channels != 1:
                raise ConfigError("a network for single series must have one channel", file=self.bundle)
            for folder in (self._incoming, self._working):
                folder.mkdir(exist_ok=True)
            shutil.rmtree(self._done, ignore_errors=True)  # a study that was being deleted
            if self.address or self.send_to:
                self._net: Any = import_extra("pynetdicom", extra="listen", purpose="DICOM nodes")
                logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # it quotes what it receives
            if self.address is not None:
                stack.callback(self._serve(self.address).shutdown)
            self.close = stack.pop_all().close

    def step(self) -> str | None:
        """Process one complete study and return its line, which identifies no patient; None if no study is complete."""
        if self.store is not None:
            self._scan(self.store)
        folder = self._complete()
        line = None if folder is None else self._process(folder)
        if self.send_to is not None and self._unsent and time.monotonic() >= self._send_at:
            self._send(self.send_to)
        return f"{line}, {len(self._unsent)} to be sent" if line and self.send_to and self._unsent else line

    def add(self, file: Path, sender: Any = None) -> None:
        """Move a DICOM file to its study, or link to it if it has no sender; an OSError if a sender reaches a limit."""
        header = read_dataset(file, tags=UIDS, stop_before_pixels=True)
        if not all(uids := [text(header, name) for name in UIDS]):
            raise DataError("the header lacks a UID", expected=", ".join(UIDS))
        study, series, image = (hashlib.sha256(uid.encode()).hexdigest()[:32] for uid in uids)
        state = self._incoming / study / STATE
        with self._lock:
            if self._is_done(f"{study}/{series}"):
                return
            reason = "" if sender is None else self._admit(state, file.stat().st_size, self._senders[sender])
            target = state.with_name(series) / f"{image}.dcm"
            target.parent.mkdir(parents=True, exist_ok=True)
            state.write_text(reason)
            if reason not in ("", BROKEN):
                raise OSError(reason)
            if sender is not None:
                file.replace(target)
            elif not target.is_symlink():
                target.symlink_to(file.resolve())

    def _admit(self, state: Path, size: int, studies: set[str]) -> str:
        """Return why the study is incomplete until its sender releases; an OSError if another study cannot wait."""
        if not state.exists() and len(list(self._incoming.iterdir())) >= MAX_WAITING:
            raise OSError("too many studies wait")
        study = state.parent.name
        before = state.read_text() if study in studies and state.exists() else ""
        studies.add(study)
        self._sizes[study] += max(size, LEAST_OBJECT)
        if shutil.disk_usage(self._incoming).free < size + RESERVE:
            return "the disk is full"
        return "the study is too large" if self._sizes[study] > MAX_STUDY else before or BROKEN

    def _serve(self, address: tuple[str, int]) -> Any:
        def store(event: Any) -> int:
            event.assoc.unfinished = 0
            file = temporary_name(self.output / "object.dcm")
            try:
                file.write_bytes(event.encoded_dataset())
                self.add(file, event.assoc)
            except OSError:
                return NO_ROOM
            except MedunetError:
                return UNREADABLE
            finally:
                file.unlink(missing_ok=True)
            return STORED[0]

        def limit_object(event: Any) -> None:
            sender, link = event.assoc, event.assoc.dul.socket
            sender.unfinished, read = 0, link.recv

            def recv(size: int) -> Any:  # pynetdicom would read a message and an object of any length into memory
                sender.unfinished += size
                if sender.unfinished > LARGEST_OBJECT:
                    link.socket.close()
                return read(size)

            link.recv = recv

        def release(event: Any) -> None:
            with self._lock:
                for state in (self._incoming / study / STATE for study in self._senders.pop(event.assoc, ())):
                    if state.exists() and state.read_text() == BROKEN:
                        state.write_text("")

        net = self._net
        net._config.UNRESTRICTED_STORAGE_SERVICE = True  # private classes, too; objects without an image are skipped
        node, evt = net.AE(TITLE), net.evt
        node.supported_contexts = net.VerificationPresentationContexts
        node.maximum_associations, node.require_calling_aet = CONNECTIONS, list(self.titles)
        node.network_timeout = self.settle + SEND_SECONDS
        handlers = [(evt.EVT_CONN_OPEN, limit_object), (evt.EVT_C_STORE, store), (evt.EVT_RELEASED, release)]
        server = node.start_server((address[0], usable_port(*address)), block=False, evt_handlers=handlers)
        server.verify_request = lambda *_: len(server.active_associations) < 2 * CONNECTIONS
        return node

    def _scan(self, store: Path) -> None:
        """Add the files that are new or have changed."""
        known, self._seen = self._seen, set()
        for path in store.rglob("[!.]*"):
            with contextlib.suppress(OSError, MedunetError):  # the next scan tries it again
                entry = (path, (status := path.stat()).st_size, status.st_mtime_ns)
                if entry not in known and looks_like_dicom(path):
                    self.add(path)
                self._seen.add(entry)

    def _complete(self) -> Path | None:
        """Return the folder of a study that is complete, or that stays incomplete."""
        if (unfinished := next(self._working.iterdir(), None)) is not None:  # of a process that ended
            return unfinished
        with self._lock:
            for sender in [sender for sender in self._senders if not sender.is_alive()]:
                del self._senders[sender]
            sending = {study for studies in self._senders.values() for study in studies}
            for state in self._incoming.glob(f"*/{STATE}"):
                name, age, reason = state.parent.name, time.time() - state.stat().st_mtime, state.read_text()
                is_complete = not reason or (reason == BROKEN and name in sending)
                if age >= (self.settle if is_complete else HOLD_SECONDS):
                    state.write_text("" if is_complete else reason)
                    del self._sizes[name]
                    return state.parent.replace(self._working / name)
        return None

    def _process(self, folder: Path) -> str:
        begun, results, sources, done = time.perf_counter(), Counter[str](), [], []
        if reason := (folder / STATE).read_text():
            results[f"failed ({reason})"] += 1
        for series in sorted(path for path in folder.iterdir() if path.is_dir() and not reason):
            name = f"{folder.name}/{series.name}"
            if problem := self._problem(name, series):
                results[problem] += 1
                continue
            sources.append(NamedSource((series,), name))
            self._ledger.add(Outcome(name, "failed", error=ENDED, attempts=self._ended[name] + 1))
        for prediction in self._predictor.predict(sources):
            cause = None if prediction.error is None else prediction.error.cause  # values may quote a header
            outcome = replace(Outcome.of(prediction, self.output), error=cause)
            if outcome.is_done:
                add_measurements(self._results / folder.name, prediction.measurements)
                self._unsent[outcome.name] = outcome
            self._ledger.add(outcome)
            done.append(prediction)
            review = "" if prediction.review is None else f" ({prediction.review})"
            results[f"segmented{review}" if cause is None else f"failed ({cause})"] += 1
        if any(one.review is not None for one in done):
            write_reviews(self._results / folder.name, done, self._predictor.structures)
        shutil.rmtree(folder.replace(self._done))  # if the process ends here, no half of the study remains to be used
        listed = ", ".join(f"{count} series {what}" for what, count in results.items())
        return f"study {folder.name[:12]}: {listed or 'empty'}, {time.perf_counter() - begun:.1f} s"

    def _problem(self, name: str, series: Path) -> str | None:
        """Return why a series is not segmented."""
        if self._is_done(name):
            return "skipped (segmented before)"
        if self._ended[name] >= MAX_ATTEMPTS:
            return f"failed (the process ended {MAX_ATTEMPTS} times)"
        try:
            images = [frames[0].file for file in sorted(series.iterdir()) if (frames := read_frames(file))]
        except MedunetError as error:
            return f"failed ({error.cause})"
        if all(image.is_localizer for image in images):
            return "skipped (no image)"
        is_other = self.modality is not None and {image.modality for image in images} != {self.modality}
        return "skipped (another modality)" if is_other else None

    def _is_done(self, name: str) -> bool:
        return name in self._ledger.outcomes and self._ledger.outcomes[name].is_done

    def _send(self, node: Node) -> None:
        """Send the results that were not sent yet, and delete them here."""
        ours = self._net.AE(TITLE)
        for kind in (SEG_CLASSES[0], EnhancedSRStorage):
            ours.add_requested_context(kind, ExplicitVRLittleEndian)
        link, problem = ours.associate(node[1], node[2], ae_title=node[0]), "it does not store a result"
        try:
            for name in list(self._unsent):
                seg = self.output / str(self._unsent[name].path)
                files = [file for file in (seg, seg.with_name(seg.stem + SR_ENDING)) if file.is_file()]
                if all(link.send_c_store(file).get("Status") in STORED for file in files):
                    self._ledger.add(replace(self._unsent.pop(name), sent=True))
                    for file in files:
                        file.unlink()
        except (ValueError, RuntimeError) as error:  # also without a connection, or if it takes no such objects
            problem = str(error)
        if self._unsent:
            logger.warning("results are sent to %s again in %.0f s: %s", node[0], SEND_SECONDS, problem)
            self._send_at = time.monotonic() + SEND_SECONDS
        link.release()
