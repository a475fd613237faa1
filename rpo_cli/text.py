"""Text for a terminal: aligned columns, sizes, shares, times."""

from __future__ import annotations

from collections.abc import Collection, Sequence

WORD_MARKS = " \u2581\u0120#"  # with which vocabularies mark a word's beginning or its end
WIDEST = 10_000  # columns of an output that is no terminal: wide enough to fold nothing


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Rows as lines with columns padded to their widest entry; `right`: columns aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip() + "\n")
    return "".join(lines)


def size(count: float) -> str:
    """Bytes as `812 B`, `3.1 MB`; powers of 1000, as `df -H` counts."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def unplain(word: str) -> str | None:
    """Why a word cannot name a folder of the program's own, in words; None: it can."""
    if not word or word != word.strip() or not word.isprintable() or set(word) & set("/\\"):
        return "expected one word that can name a folder, without / and control characters"
    if word[0] in ".-":
        return f"a name does not begin with {word[0]!r}"
    return "longer than 100 bytes" if len(word.encode("utf-8", "replace")) > 100 else None


def is_word(token: str) -> bool:
    """Whether a text may hold a token: a word or a part of one, with the marks of vocabularies, or signs."""
    bare = token.strip(WORD_MARKS)
    return bare.isalnum() or not any(map(str.isalnum, bare)) or any(map(str.isspace, token))


def counted(count: int, one: str, several: str = "") -> str:
    """`1 seed`, `2 seeds`; several: what more than one are called, where that is not with an s."""
    return f"{count} {one if count == 1 else several or f'{one}s'}"


def some(names: Sequence[str]) -> str:
    """`a, b, c and 4 more`."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def cut(text: str, most: int) -> str:
    """A text of at most so many characters, with `...` at the end of a longer one."""
    return text if len(text) <= most else text[: most - 3] + "..."


def percent(share: float | None) -> str:
    """A share as `12.3 %`; nothing where there was nothing to count."""
    return "" if share is None else f"{100 * share:.1f} %"


def first_line(error: Exception | str) -> str:
    """What an error says, as far as its first line (after a colon, the next as well); else its type."""
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join([first, *(line.strip() for line in others[:1] if first.endswith(":"))])


def clock(seconds: float) -> str:
    """Seconds as `1h02m`, `3m05s` or `12s`."""
    whole = max(0, round(seconds))
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"
