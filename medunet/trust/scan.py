"""Find every place of a bundle that could run code, reach outside or has changed. Files are only read as text."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from medunet.config import MAX_CONFIG_BYTES
from medunet.files import damaged_checkpoint, sha256_of

from .known import EXPRESSION, GADGET_ARGUMENTS, KNOWN_TARGETS, MACRO, READER_TARGET, TARGET, is_known_expression

# Code, pickles, and configs in YAML, which other programs prefer to the JSON that is judged here.
CODE_SUFFIXES = frozenset(
    {".py", ".pyc", ".pyd", ".pyw", ".pth", ".so", ".dll", ".dylib", ".sh", ".bat", ".cmd", ".ps1", ".exe"}
    | {".ipynb", ".pkl", ".pickle", ".joblib", ".yaml", ".yml"}
)
SHOWN_CHARACTERS = 200
READ_ONLY_IDS = frozenset({"dataset_dir", "init_from", "ckpt_path", "source", "data", "path", "_desc_"})  # never code
WEIGHTS = "weights"  # key of metadata.json: SHA-256 by file of `models/`

_OUTSIDE = re.compile(r"(/|~|\\\\)|.*:[\\/]|(.*[\\/])?\.\.([\\/]|$)", re.DOTALL)

_LOG_CLASSES = {"StreamHandler", "logging.StreamHandler", "NullHandler", "logging.NullHandler"}
_LOG_ARGUMENTS = re.compile(r"\(\s*((sys\.)?(stdout|stderr)\s*,?)?\s*\)")
_LOG_KEYS = {"keys", "level", "handlers", "qualname", "propagate", "formatter", "format", "datefmt", "style"}
_LOG_LINE = re.compile(r"(?P<key>[A-Za-z_]+)\s*[=:]\s*(?P<value>.*)")


class Finding(NamedTuple):
    """One reason not to trust a bundle."""

    file: str  # path inside the bundle
    id: str  # of the value, or the line, or ''
    text: str  # the value, safe to print
    why: str  # what it could do
    outside: bool = False  # it only refers outside the bundle's folder, which is allowed in one's own bundle
    damaged: bool = False  # it is a damaged file of weights, which is not a question of trust

    def __str__(self) -> str:
        place = f"{self.file} {self.id}".strip()
        return f"{place}: {self.text} ({self.why})" if self.text else f"{place} ({self.why})"


class Scan(NamedTuple):
    """The result of `scan_bundle`."""

    findings: tuple[Finding, ...]  # everything that is not known to be harmless
    digest: str  # SHA-256 over all that can run code and over the findings; it differs after any change of either
    weights: tuple[str, ...]  # files of `models/` whose SHA-256 is the recorded one
    configs: Mapping[str, Any]  # content of the JSON files by name, as judged; a file may have changed since


def scan_bundle(bundle: Path) -> Scan:
    """Scan a bundle's folder by the lists of :mod:`medunet.trust.known`."""
    findings: list[Finding] = []
    texts: list[tuple[str, str]] = []
    configs: dict[str, Any] = {}
    for path in _files(bundle, findings):
        name = path.relative_to(bundle).as_posix()
        in_configs = name.casefold().startswith("configs/")
        if in_configs:  # some file systems do not distinguish Configs from configs
            name = f"configs/{name[len('configs/') :]}"
        if path.suffix.lower() in CODE_SUFFIXES:
            findings.append(Finding(_safe(name), "", "", "code, or a config that other programs would run"))
            texts.append((name, sha256_of(path)))
        elif in_configs and path.stat().st_size > MAX_CONFIG_BYTES:
            findings.append(Finding(_safe(name), "", f"{path.stat().st_size} bytes", "too large for a config"))
            texts.append((name, str(path.stat().st_size)))
        elif in_configs and path.suffix == ".json":
            configs[name], text = _scan_json(path, _safe(name), findings)
            texts.append((name, text))
        elif in_configs:
            findings += _scan_other(path, _safe(name))
            texts.append((name, sha256_of(path)))
    weights = _scan_weights(bundle, configs.get("configs/metadata.json"), findings)
    seen = hashlib.sha256(json.dumps([sorted(texts), sorted(map(str, findings))]).encode("utf-8", "backslashreplace"))
    return Scan(tuple(findings), seen.hexdigest(), weights, configs)


def _files(bundle: Path, findings: list[Finding]) -> Iterator[Path]:
    root = bundle.resolve()

    def note(path: Path, why: str, *, outside: bool = False) -> None:
        findings.append(Finding(_safe(path.relative_to(bundle).as_posix()), "", "", why, outside))

    # files in a folder that cannot be listed can still be opened by name
    unlisted = lambda error: note(Path(error.filename or bundle), "a folder that cannot be listed")  # noqa: E731
    for folder, folders, names in os.walk(bundle, onerror=unlisted):
        for name in sorted([*folders, *names]):
            path = Path(folder) / name
            target = path.resolve()
            if path.is_symlink() and target != root and root not in target.parents:
                note(path, "a link that leaves the bundle", outside=name.casefold() != "configs")
            elif path.is_symlink() and name in folders:
                note(path, "a link to a folder, which is not scanned")
        yield from (path for name in sorted(names) if (path := Path(folder) / name).is_file())


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(content := dict(pairs)) != len(pairs):
        raise ValueError("a key occurs twice")  # readers differ in which one counts
    return content


def _scan_json(path: Path, name: str, findings: list[Finding]) -> tuple[Any, str]:
    """Return the content, and the text for the digest, which excludes recorded hashes of weights."""
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    try:
        content = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        cause = "nested too deeply" if isinstance(error, RecursionError) else _safe(str(error))
        findings.append(Finding(name, "", "", f"not plain JSON: {cause}"))
        return None, digest
    is_metadata = name == "configs/metadata.json"
    findings += _scan_values(content, name, paths=not is_metadata)
    if is_metadata and isinstance(content, dict):
        digest = json.dumps({key: value for key, value in content.items() if key != WEIGHTS}, sort_keys=True)
    return content, digest


def _scan_values(content: Any, file: str, *, paths: bool) -> Iterator[Finding]:
    waiting: list[tuple[str, str, Any]] = [("", "", content)]
    while waiting:
        id_, key, value = waiting.pop()
        if (result := _scan_value(key, value, paths=paths)) is not None:
            text, why, outside = result
            yield Finding(file, _safe(id_), _safe(text), why, outside)
        own = [(str(k), str(k), v) for k, v in value.items()] if isinstance(value, Mapping) else []
        own += [(str(k), key, v) for k, v in enumerate(value)] if isinstance(value, list) else []
        waiting += [(f"{id_}::{name}" if id_ else name, k, inner) for name, k, inner in own]


def _parts(key: str) -> list[str]:
    """Split a key as MONAI does: `+a::b` and `a#b` address the same value as `a` with `b` inside."""
    return [part.lstrip("+~") for part in re.split(r"::|#", key)]


def _argument(key: str) -> str:
    """Return the name of the argument that a key sets; a number addresses an entry of the argument before it.

    Examples:
        >>> _argument("steps::load::data::0"), _argument("+steps#load#data"), _argument("steps::load::data:: 0")
        ('data', 'data', 'data')
    """
    parts = _parts(key)
    return next((part for part in reversed(parts) if not _is_number(part)), parts[-1])


def _is_number(text: str) -> bool:
    """Return whether MONAI takes a text as an index: by `int`, which also accepts " 0" and "0_0"."""
    try:
        int(text)
    except ValueError:
        return False
    return True


def _scan_value(key: str, value: Any, *, paths: bool) -> tuple[str, str, bool] | None:
    """Return text, reason and whether it is only an outside path, for a value that is not known to be harmless."""
    *path, name = _parts(key)
    for outer in path:
        # `reader::_target_` and `allow_pickle::x` turn an allowed value into another one, piece by piece
        if outer in GADGET_ARGUMENTS:
            return f"{key}={value}", GADGET_ARGUMENTS[outer][1], False
    if name == TARGET:
        is_known = isinstance(value, str) and value in KNOWN_TARGETS
        why = "is imported and called, and is not on the list of reviewed targets"
        return None if is_known else (str(value), why, False)
    if name in GADGET_ARGUMENTS and not _is_allowed(name, value):
        text = f"{{{', '.join(map(str, value))}}}" if isinstance(value, Mapping) else value
        return f"{name}={text}", GADGET_ARGUMENTS[name][1], False
    if not isinstance(value, str):
        return None
    stripped = value.lstrip()
    if stripped.startswith(EXPRESSION):
        return None if is_known_expression(value) else (value, "runs as Python code", False)
    if stripped.startswith(MACRO):
        return value, "includes another file", False
    # a reference to an id that may contain an outside path
    borrows = stripped.startswith("@") and ("_meta_" in stripped or _argument(stripped[1:]) in READ_ONLY_IDS)
    if paths and _argument(key) not in READ_ONLY_IDS and (_OUTSIDE.match(stripped) or borrows):
        return value, "refers outside the bundle's folder", True
    return None


def _is_allowed(argument: str, value: Any) -> bool:
    """Return whether a dangerous argument has one of its allowed values; the type counts, so 0 is not `False`."""
    if isinstance(value, list):  # of readers: entries follow. MONAI imports and calls what a list of lists yields
        return argument == "reader" and not any(isinstance(one, list) for one in value)
    if isinstance(value, Mapping):  # MONAI iterates every other component, and takes what it yields as names
        return argument == "reader" and value.get(TARGET) == READER_TARGET
    return isinstance(value, bool | str | None) and value in GADGET_ARGUMENTS[argument][0]


def _scan_other(path: Path, name: str) -> Iterator[Finding]:
    """Accept only plain console logging, because Python's `fileConfig` evaluates parts of `logging.conf`."""
    if path.name != "logging.conf":
        yield Finding(name, "", "", "not a config that medunet knows")
        return
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        yield Finding(name, "", "", "not text")
        return
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):  # the line ends of fileConfig
        if line.strip() and not _is_plain_logging(line):
            yield Finding(name, f"line {number}", _safe(line.strip()), "Python's logging would evaluate it")


def _is_plain_logging(line: str) -> bool:
    """Judge a line by itself, without the parser that would evaluate it."""
    if line.startswith(("#", ";")) or re.fullmatch(r"\[[A-Za-z_]+\]\s*", line):
        return True
    if (match := _LOG_LINE.fullmatch(line)) is None:
        return False
    key, value = match["key"], match["value"].strip()
    if key == "class":
        return value in _LOG_CLASSES
    return _LOG_ARGUMENTS.fullmatch(value) is not None if key == "args" else key in _LOG_KEYS


def _scan_weights(bundle: Path, metadata: Any, findings: list[Finding]) -> tuple[str, ...]:
    """Return the files of `models/` that have their recorded hash."""
    recorded = metadata.get(WEIGHTS, {}) if isinstance(metadata, Mapping) else {}
    same: list[str] = []
    for name, expected in recorded.items() if isinstance(recorded, Mapping) else [("", recorded)]:
        path = bundle / "models" / name
        if not re.fullmatch(r"[\w-][\w.-]*", name) or not isinstance(expected, str):
            text = _safe(f"{name}: {expected}")
            findings.append(Finding("configs/metadata.json", WEIGHTS, text, "not a hash of weights"))
        elif path.is_file() and (digest := sha256_of(path)) == expected.lower():
            same.append(name)
        elif path.is_file() and damaged_checkpoint(path) is not None:
            findings.append(Finding(f"models/{name}", "", "", "the file is damaged", damaged=True))
        elif path.is_file():
            digests = f"SHA-256 {digest[:12]}..., not {_safe(expected)[:12]}..."
            findings.append(Finding(f"models/{name}", "", "", f"weights do not match metadata.json ({digests})"))
    return tuple(same)


def _safe(text: str) -> str:
    """Return an untrusted text in a form that is safe to print: one line, no control characters, limited length."""
    plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: SHOWN_CHARACTERS + 1])
    return plain if len(plain) <= SHOWN_CHARACTERS else plain[: SHOWN_CHARACTERS - 3] + "..."
