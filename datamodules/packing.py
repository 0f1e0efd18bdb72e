"""Packing text into files of token ids (shards), in parallel; a run that was killed continues with the next shard."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from zoo.console.progress_display import counting
from zoo.console.threads import available_cores
from zoo.datamodules.checksums import checksums, find_damage
from zoo.datamodules.sources.spans import Part, Row
from zoo.files.atomic import replacing
from zoo.text_formats.json_text import dump_json, parse_json
from zoo.tokenizers import Tokenizer, from_state
from zoo.tokenizers.byte_level import ByteTokenizer

CHUNK_CHARACTERS = 1 << 16  # usual size of a chunk of a document
CHECKED_AT_START = 4 << 30  # bytes; of a larger file, whose check would take long, each part is checked when first read
COUNTS = ("tokens", "words", "bytes")
BATCH_CHARACTERS = 1 << 20  # size of what is encoded in one call; no chunk is longer, except for a single long row


def write_once(file: Path, write: Callable[[Path], None], damage: Callable[[], str | None]) -> None:
    """Create `file` unless it exists undamaged: `write(temporary)` writes a temporary file, which is then renamed.

    If several processes call this, one writes the file and the others wait. A damaged file is written again, and
    a message on standard error reports it.

    Args:
        file: the file.
        write: writes its content to the path that it gets.
        damage: what is wrong with the existing file, as the end of a sentence; None if nothing is.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    if file.exists() and damage() is None:
        return
    # The lock lets one process write, and the rename makes the file appear only when it is complete.
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            # While this process waited for the lock, another may have written the file.
            reason = damage() if file.exists() else None
            if reason is not None:
                print(f"zoo: {file} in the cache is damaged ({reason}): it is written again", file=sys.stderr)
            if reason is not None or not file.exists():
                with replacing(file, durable=True) as temporary:
                    write(temporary)
    except OSError as error:
        raise OSError(
            f"cannot write to the cache folder {file.parent} ({error.strerror or error}): free disk space, or choose"
            " another folder with $ZOO_CACHE or cache_dir"
        ) from error


def pack(
    parts: Callable[[], list[Part]], tokenizer: Tokenizer, file: Path, workers: int | None = None
) -> dict[str, int]:
    """Tokenize a text into `file`, unless that is done already. Memory does not grow with the text.

    Each document starts with BOS if the tokenizer has one. The counts and the checksums of `file` are stored next to
    it, with the suffix .json, which is written last: if it exists, `file` is complete. A text of several parts is
    packed into a file for each, a shard with its own counts; then the .json of `file` names the shards instead of
    checksums. Shards that a killed process has completed are compared with their checksums and kept.

    At the start, files of at most 4 GiB together are compared with their checksums once per process; of larger ones
    only the sizes are compared, and `Windows` checks the parts that it reads.

    Args:
        parts: the text, divided into parts; called where something has to be packed.
        tokenizer: any tokenizer.
        file: the file to write.
        workers: processes that pack; None starts one for every available CPU core.

    Returns:
        The counts: "tokens"; "bytes" of UTF-8; "words" as on WikiText, that is, between white space, plus line ends.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """

    def write(temporary: Path) -> None:
        divided = parts()
        if len(divided) == 1:
            _write_shard(divided[0], tokenizer, file, temporary)
        else:
            _write_shards(divided, tokenizer, file, temporary, workers or available_cores())

    write_once(file.with_suffix(".json"), write, lambda: _damage(file))
    return {name: read_counts(file)[name] for name in COUNTS}


def _write_shard(part: Part, tokenizer: Tokenizer, file: Path, counts: Path) -> None:
    """Write the tokens of a part into `file`, then its counts and checksums into `counts`."""
    with replacing(file) as temporary:
        stats = _write_tokens(part.rows(), tokenizer, temporary)
        sums = checksums(temporary)
    counts.write_text(dump_json(stats | {"crc32": sums, "itemsize": token_dtype(tokenizer.vocab_size)(0).itemsize}))


def _write_shards(parts: list[Part], tokenizer: Tokenizer, file: Path, counts: Path, workers: int) -> None:
    """Write a shard for every part in several processes, then the names and counts of all shards into `counts`."""
    import joblib

    # The name tells which part of the text a shard holds, so that shards of another division are never used.
    files = [file.with_name(f"{file.stem}-{part.start:015d}-{part.size}.bin") for part in parts]
    workers = min(workers, len(parts))
    jobs = (
        joblib.delayed(_pack_shard)(i, part, tokenizer.state(), shard, workers > 1)
        for i, (part, shard) in enumerate(zip(parts, files, strict=True))
    )
    total = dict.fromkeys(COUNTS, 0)
    tokens = [0] * len(parts)
    shown = counting(len(parts), "shard", f"packing the {file.stem} split", is_shown=len(parts) > 1)
    with shown as add, joblib.parallel_config(backend="loky", inner_max_num_threads=1):
        for i, stats in joblib.Parallel(n_jobs=workers, return_as="generator_unordered")(jobs):
            tokens[i] = stats["tokens"]
            total = {name: total[name] + stats[name] for name in COUNTS}
            add(1)
    shards = [[shard.name, n] for shard, n in zip(files, tokens, strict=True)]
    counts.write_text(dump_json(total | {"itemsize": token_dtype(tokenizer.vocab_size)(0).itemsize, "shards": shards}))


def _pack_shard(i: int, part: Part, tokenizer: Any, file: Path, is_worker: bool) -> tuple[int, dict[str, int]]:
    """Write one shard, unless it is complete, and return its number and counts. Runs in a worker process."""
    if is_worker:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes already use all cores
    tokenizer = from_state(tokenizer)
    write_once(
        file.with_suffix(".json"), lambda counts: _write_shard(part, tokenizer, file, counts), lambda: _damage(file)
    )
    return i, read_counts(file)


def read_counts(file: Path) -> dict[str, Any]:
    """The counts of a packed file, with its checksums or the names and tokens of its shards; {} where damaged."""
    try:
        content = parse_json(file.with_suffix(".json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # missing, not JSON, or not UTF-8
        return {}
    if not isinstance(content, dict):
        return {}
    shards = content.get("shards", [])
    if "shards" not in content and not isinstance(content.get("crc32"), list):
        return {}
    if not isinstance(shards, list) or not all(
        isinstance(shard, list) and len(shard) == 2 and isinstance(shard[0], str) and Path(shard[0]).name == shard[0]
        for shard in shards
    ):
        return {}
    numbers = [content.get(name) for name in (*COUNTS, "itemsize")] + content.get("crc32", [])
    numbers += [n for _, n in shards]
    return content if all(type(number) is int and number >= 0 for number in numbers) else {}


def shard_files(file: Path) -> list[tuple[Path, int]]:
    """The files of token ids of a packed file, and the number of tokens in each."""
    counts = read_counts(file)
    if "shards" in counts:
        return [(file.with_name(name), n) for name, n in counts["shards"]]
    return [(file, counts["tokens"])]


_intact: set[tuple[Path, int, int]] = set()  # files checked by this process: path, time of change, inode


def _damage(file: Path) -> str | None:
    """What is wrong with a packed file and its counts; None if nothing is, or another process has looked."""
    if os.environ.get("LOCAL_RANK", "0") != "0":  # the first process of the machine checks before the others start
        return None
    if not (counts := read_counts(file)):
        return "its counts or its checksums cannot be read"
    is_checked = counts["tokens"] * counts["itemsize"] <= CHECKED_AT_START
    for shard, tokens in shard_files(file):
        if not shard.exists():
            return "the tokens are missing" if shard == file else f"{shard.name} is missing"
        state = shard.stat()
        if state.st_size != tokens * counts["itemsize"]:
            return f"there are {state.st_size} bytes of tokens, not {tokens * counts['itemsize']}"
        key = (shard, state.st_mtime_ns, state.st_ino)
        if is_checked and key not in _intact:
            if reason := find_damage(shard, read_counts(shard).get("crc32", [])):
                return reason
            _intact.add(key)
    return None


def token_dtype(vocab_size: int) -> type[np.unsignedinteger]:
    """The narrowest unsigned integer type that holds every token id."""
    return np.uint8 if vocab_size <= 1 << 8 else np.uint16 if vocab_size <= 1 << 16 else np.uint32


def chunk_rows(rows: Iterable[Row]) -> Iterator[Row]:
    """Join rows into chunks of about 64 KB, none of which crosses the start of a document.

    A chunk ends after a line that contains text and before a line that is not indented, because no tokenizer merges
    characters across such a place. A single leading space, as on WikiText, is not an indent: a byte-level BPE merges it
    with the following word.
    """
    starts_document, lines, size = False, list[str](), 0
    for starts_here, text in rows:
        # End the chunk before the start of a document, where it is long enough and may end, or where it is too long.
        can_split = bool(lines and lines[-1].strip() and not text[:2].isspace())
        if lines and (starts_here or (size >= CHUNK_CHARACTERS and can_split) or size >= BATCH_CHARACTERS):
            yield starts_document, "".join(lines)
            starts_document, lines, size = False, [], 0
        starts_document |= starts_here
        lines.append(text)
        size += len(text)
    if lines:
        yield starts_document, "".join(lines)


def _write_tokens(rows: Iterable[Row], tokenizer: Tokenizer, file: Path) -> dict[str, int]:
    """Write the ids of all rows, flush them to disk, and return the counts."""
    # Encode batch by batch, and count tokens, words and bytes in passing.
    stats = {"tokens": 0, "words": 0, "bytes": 0}
    with file.open("wb") as out:
        for batch in _batches(chunk_rows(rows)):
            for ids in _encode(batch, tokenizer):
                out.write(ids.tobytes())  # unlike tofile, names the reason if the disk is full
                stats["tokens"] += len(ids)
            for _, text in batch:
                stats["words"] += len(text.split()) + text.count("\n")
                stats["bytes"] += len(text.encode())
        out.flush()
        os.fsync(out.fileno())
    return stats


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Group rows into lists of at least `BATCH_CHARACTERS` characters."""
    batch, size = list[Row](), 0
    for row in rows:
        batch.append(row)
        size += len(row[1])
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(batch: list[Row], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """The ids of each row, with BOS where a document starts."""
    dtype = token_dtype(tokenizer.vocab_size)
    front = np.array([] if tokenizer.bos_id is None else [tokenizer.bos_id], dtype)
    if isinstance(tokenizer, ByteTokenizer):  # the same ids, without a list of Python's numbers: six times as fast
        for is_start, text in batch:
            ids = np.frombuffer(text.encode(), np.uint8).astype(dtype)
            yield np.concatenate([front, ids]) if is_start else ids
        return
    # Starts of documents and continuations are encoded separately, then yielded in the order of the rows.
    first = iter(tokenizer.encode_batch([text for is_start, text in batch if is_start]))
    later = iter(tokenizer.encode_batch([text for is_start, text in batch if not is_start], continued=True))
    for is_start, _ in batch:
        yield np.concatenate([front, np.asarray(next(first), dtype)]) if is_start else np.asarray(next(later), dtype)
