"""Names in archives, of any age and system, to labels: parts joined by "/". No label leads outside of a folder."""

import re
import struct
import zipfile

UTF8_FLAG = 0x800  # of a zip's member (APPNOTE.TXT 4.4.4)
UNICODE_PATH = 0x7075  # the extra field with the name in UTF-8 (APPNOTE.TXT 4.6.9)
# Hiragana, katakana, kanji and full-width letters, as in names from Japanese Windows. Text of other code pages is
# often valid Shift-JIS, but hardly ever gives two of them in a row.
JAPANESE = "\u3005-\u3007\u3041-\u30ff\u3400-\u9fff\uff10-\uff5a"
# The second byte of many characters in Shift-JIS is that of a backslash, which another code page shows as one.
BEFORE_SUFFIX = re.compile(r"\\(?=\.\w+\Z)")


def tar_label(name: str) -> str:
    """The label of a member of a tar archive, as of a file in a folder: any bytes, also backslashes, are a name."""
    return _inside(name)


def zip_label(info: zipfile.ZipInfo) -> str:
    """The label of a member of a zip archive: its name decoded, with the separators of Windows as "/"."""
    name = info.filename
    if not info.flag_bits & UTF8_FLAG and not name.isascii():
        name = _unicode_path(info.extra) or _decoded(name.encode("cp437"))
    return _inside(BEFORE_SUFFIX.sub("_", name).replace("\\", "/"))


def _decoded(name: bytes) -> str:
    """A name without a sign of its encoding: UTF-8 or Shift-JIS if it looks like it, else what zip prescribes."""
    for encoding in ("utf-8", "cp932"):
        try:
            text = name.decode(encoding)
        except UnicodeDecodeError:
            continue
        if encoding == "utf-8" or _is_japanese(text, has_backslash_byte=b"\\" in name):
            return text
    return name.decode("cp437")


def _is_japanese(text: str, has_backslash_byte: bool) -> bool:
    swallowed = has_backslash_byte and "\\" not in text
    return re.search(f"[{JAPANESE}]{{{1 if swallowed else 2}}}", text) is not None


def _unicode_path(extra: bytes) -> str | None:
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == UNICODE_PATH:
            try:
                return extra[9 : 4 + length].decode() or None
            except UnicodeDecodeError:
                return None
        extra = extra[4 + length :]
    return None


def _inside(name: str) -> str:
    """The name, without what leads outside of a folder: a root, a drive, "..". Others are left as they are."""
    parts = name.split("/")
    drive = re.fullmatch("[A-Za-z]:", parts[0])
    if not drive and not name.startswith("/") and ".." not in parts:
        return name
    kept = [part for part in parts[1 if drive else 0 :] if part not in ("", ".", "..")]
    return "/".join(kept) or "_"
