"""What a file is when it is none that is read, and the way from there to one that is."""

import re
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

WRITE = (
    "load it in Python and write np.savez('mine.npz', observations=..., actions=..., "
    "episode_ends=...)"
)
UNPACK = "unpack it and give the file or folder inside"
NOT_RUN = f"it can run code, so it is never opened here; {WRITE}"
VIDEO = "actions and states are in another file of the recording; give that one"


class Kind(NamedTuple):
    """What a file is, and what to do with it."""

    what: str
    remedy: str = WRITE


# (place, bytes, what it is): signatures as in the file(1) magic of each format's specification
SIGNATURES = [
    (0, b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", Kind("a torch file (torch.save)", NOT_RUN)),
    *[(0, bytes([0x80, protocol]), Kind("a Python pickle", NOT_RUN)) for protocol in (2, 3, 4, 5)],
    (0, b"ARROW1", Kind("an Arrow (Feather) file")),
    (0, b"\xff\xff\xff\xff", Kind("an Arrow stream")),
    (0, b"\xd0\xcf\x11\xe0", Kind("an old Office file (.xls)")),
    (0, b"\x1f\x8b", Kind("gzip-compressed", UNPACK)),
    (0, b"\x28\xb5\x2f\xfd", Kind("zstd-compressed", UNPACK)),
    (0, b"\xfd7zXZ", Kind("xz-compressed", UNPACK)),
    (0, b"BZh", Kind("bzip2-compressed", UNPACK)),
    (0, b"7z\xbc\xaf", Kind("a 7z archive", UNPACK)),
    (0, b"Rar!", Kind("a rar archive", UNPACK)),
    (257, b"ustar", Kind("a tar archive", UNPACK)),
    (0, b"\x89MCAP0", Kind("an MCAP recording (ROS 2)")),
    (0, b"#ROSBAG", Kind("a ROS bag")),
    (0, b"SQLite format 3", Kind("an SQLite database (a ROS 2 bag is one)")),
    (0, b"MATLAB 5.0 MAT-file", Kind("a MATLAB file")),
    (0, b"CDF", Kind("a netCDF file")),
    (4, b"ftyp", Kind("a video (MP4)", VIDEO)),
    (0, b"\x1aE\xdf\xa3", Kind("a video (Matroska)", VIDEO)),
    (0, b"RIFF", Kind("a video (AVI) or a sound", VIDEO)),
    (0, b"\x89PNG", Kind("an image (PNG)", VIDEO)),
    (0, b"\xff\xd8\xff", Kind("an image (JPEG)", VIDEO)),
    (0, b"GIF8", Kind("an image (GIF)", VIDEO)),
    (0, b"%PDF", Kind("a PDF document")),
]
PROGRAM = Kind(
    "an exported torch program", "it acts, it is no recording: policy=exported policy.path=FILE"
)
ZARR = (".zgroup", ".zarray", ".zmetadata", "zarr.json")
DATA = (".hdf5", ".h5", ".npz", ".parquet", ".csv", ".pkl", ".pt", ".tfrecord", ".npy")


def signed(head: bytes) -> Kind | None:
    """The kind of a file by its first bytes."""
    for place, mark, kind in SIGNATURES:
        if head[place : place + len(mark)] == mark:
            return kind
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 27:
        return Kind("a safetensors file (network weights)", "give the recording, not a checkpoint")
    return None


def texted(path: Path, head: bytes) -> Kind | None:
    """The kind of a text file, None where it is none."""
    whole = head[: head.rfind(b"\n") + 1] or head  # the last line may be cut, inside a letter too
    try:
        text = whole.decode()
    except UnicodeDecodeError:
        return None
    if "\0" in text or not text.strip():
        return None
    lines = text.splitlines()
    if path.suffix.lower() in (".json", ".jsonl") or text.lstrip()[0] in "{[":
        return Kind("a JSON file", beside(path) or WRITE)
    if re.match(r"[(\]}c][ldp_q0\n]", text) and path.suffix.lower() in (".pkl", ".pickle", ".p"):
        return Kind("a Python pickle", NOT_RUN)
    for mark, name in ((",", "commas"), ("\t", "tabs"), (";", "semicolons")):
        counts = {line.count(mark) for line in lines[:20] if line.strip()}
        if counts and min(counts) > 0 and (len(counts) == 1 or path.suffix.lower() == ".csv"):
            return Kind(f"a table of text, columns between {name} (CSV)")
    return Kind(f"a text file (it begins with {lines[0][:40]!r})")


def beside(path: Path) -> str | None:
    """The remedy for a JSON file that tells of recordings beside it."""
    if path.name in ("info.json", "stats.json", "episodes.jsonl", "tasks.jsonl"):
        return f"it tells of a LeRobot data set; give its folder: data={path.parent.parent}"
    twin = path.with_suffix(".h5")
    return f"it tells of a ManiSkill file; give {twin}" if twin.is_file() else None


def zip_names(path: Path) -> list[str] | None:
    """The entries of a zip archive, None where it cannot be opened."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile, zlib.error):
        return None


def zarr_root(names: Iterable[str]) -> str | None:
    """The folder of a zarr store among an archive's names: "" at its top, None without one."""
    found = [name.rpartition("/") for name in names if name.rpartition("/")[2] in ZARR]
    return min((folder for folder, _, _ in found), key=len, default=None)


def zipped(names: list[str]) -> str | Kind:
    """ "npz", "zarr" or what else an archive of these entries is."""
    last = {name.rpartition("/")[2] for name in names}
    inside = {part for name in names for part in name.split("/")[:-1]}
    if zarr_root(names) is not None:
        return "zarr"
    if "[Content_Types].xml" in last:
        office = {"xl": "a spreadsheet (Excel)", "word": "a Word document", "ppt": "slides"}
        found = next((text for folder, text in office.items() if folder in inside), None)
        return Kind(found or "an Office document")
    if "content.xml" in last and "mimetype" in last:
        return Kind("a spreadsheet or document (OpenDocument)")
    if last & {"data.pkl", "constants.pkl"} or "archive_format" in last:
        program = "code" in inside or "archive_format" in last
        return PROGRAM if program else Kind("a torch file (torch.save)", NOT_RUN)
    if any(name.endswith(".npy") for name in names):
        return "npz"
    held = [name for name in names if name.lower().endswith(DATA)]
    if not names:
        return Kind("an empty zip archive", "fetch or write it again")
    listed = ", ".join((held or names)[:3]) + (" ..." if len(held or names) > 3 else "")
    return Kind(f"a zip archive of {len(names):,} entries ({listed})", UNPACK)


def hub(name: str) -> str | None:
    """How to get a data set that is named as the Hugging Face hub names it, else None."""
    # a Path has one slash where an address has two
    address = re.match(r"(?:https?:/+)?(?:huggingface|hf)\.co/datasets/([\w.-]+/[\w.-]+)", name)
    plain = re.fullmatch(r"(?:hf:/+(?:datasets/)?)?([\w][\w.-]*/[\w][\w.-]*)", name)
    found = address or plain
    known = (".npz", ".hdf5", ".h5", ".parquet", ".zarr", ".zip", ".csv", ".pkl", ".pt")
    if found is None or found[1].lower().endswith(known):
        return None
    folder = found[1].rpartition("/")[2]
    return (
        f"a data set of the Hugging Face hub is downloaded with `hf download {found[1]} "
        f"--repo-type dataset --local-dir {folder}`; then give data={folder}"
    )
